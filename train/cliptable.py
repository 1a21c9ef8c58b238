"""Which frames make up which clip: index lists into the features of a set of videos. Pure numpy.

Shapes: N clips, T steps, F frames of all videos together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from cache.clips import ClipRule


@dataclass(frozen=True, kw_only=True)
class ClipTable:
    """The clips of some videos, video after video."""

    video_ids: tuple[str, ...]
    """The videos, in the order of their frames."""
    video_N: NDArray[np.int64]
    """Index of each clip's video."""
    label_N: NDArray[np.int64]
    """Class index of each clip's video."""
    frames_NT: NDArray[np.int64]
    """Frame indices of each clip, counted over all videos together."""
    spans_N2: NDArray[np.int64]
    """First frame of each clip and one past its last, `[start, stop)`, within the video at the clip rule's rate."""

    def __len__(self) -> int:
        return len(self.video_N)

    def ids_of(self, clips: NDArray[np.int64]) -> list[str]:
        """Ids of the videos that `clips` come from, each once, in their order."""
        return [self.video_ids[video] for video in np.unique(self.video_N[clips])]


def cut(
    video_ids: Sequence[str],
    labels: Sequence[int],
    offsets: NDArray[np.int64],
    pts_seconds: NDArray[np.float64],
    rule: ClipRule,
) -> ClipTable:
    """Cut videos into clips. Video `i` has the frames `[offsets[i], offsets[i + 1])` of `pts_seconds` `[F]`."""
    frames, spans = [], []
    for first, stop in pairwise(offsets.tolist()):
        pts_F = pts_seconds[first:stop]
        frames.append(rule.frames(pts_F) + first)
        starts = np.asarray(rule.starts(len(rule.resample(pts_F))), dtype=np.int64)
        spans.append(np.stack([starts, starts + rule.length], axis=1))
    counts = [len(each) for each in frames]
    return ClipTable(
        video_ids=tuple(video_ids),
        video_N=np.repeat(np.arange(len(counts)), counts),
        label_N=np.repeat(np.asarray(labels, dtype=np.int64), counts),
        frames_NT=np.concatenate(frames) if frames else np.empty((0, rule.length), dtype=np.int64),
        spans_N2=np.concatenate(spans) if spans else np.empty((0, 2), dtype=np.int64),
    )
