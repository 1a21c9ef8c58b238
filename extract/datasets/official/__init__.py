"""Fetching the official archives and unpacking them into a data folder."""
