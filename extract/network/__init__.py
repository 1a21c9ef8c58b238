"""Frames to features: weights, preprocessing, batches, the backbone on its device."""
