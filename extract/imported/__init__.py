"""Features that other programs made, as a cache."""
