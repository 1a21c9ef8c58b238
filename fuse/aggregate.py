"""From clips to videos, from three levels to one prediction. Sweeps need the same, so it lives in `cache.aggregate`."""

from cache.aggregate import (
    MEAN_WEIGHTS,
    PAPER_WEIGHTS,
    align,
    check_weights,
    clips_to_videos,
    fuse_levels,
    search_weights,
)

__all__ = [
    "MEAN_WEIGHTS",
    "PAPER_WEIGHTS",
    "align",
    "check_weights",
    "clips_to_videos",
    "fuse_levels",
    "search_weights",
]
