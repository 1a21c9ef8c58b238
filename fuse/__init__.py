"""Stage three: scores to predictions, tables and figures."""
