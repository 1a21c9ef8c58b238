"""MRRN: features of videos, computed once; heads trained from them."""
