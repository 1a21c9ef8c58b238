"""What is on disk: the feature cache, datasets, clips and scores."""
