"""Stage two: cached features to heads and scores."""
