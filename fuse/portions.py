"""Some of the test samples, and how many of them the fused model gets right: by length, by recording."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from cache.aggregate import Interval, wilson
from fuse.results import Results

LENGTHS: Final = 5
"""Parts of about as many videos in which the accuracy is given by length."""

GROUPED: Final = 2
"""Videos from which on a recording is a group whose accuracy is worth a line."""


@dataclass(frozen=True)
class Portion:
    """Some of the test videos, and how many of them the fused model gets right."""

    name: str
    videos: int
    right: int

    @property
    def accuracy(self) -> float:
        """A fraction."""
        return self.right / self.videos

    @property
    def interval(self) -> Interval:
        """95 % interval of the accuracy, Wilson's."""
        return wilson(self.right, self.videos)


def by_length(results: Results) -> list[Portion]:
    """The test samples in LENGTHS parts by their cached frames, from short to long; empty if these are unknown."""
    frames = np.array([results.cache.frames.get(video, 0) for video in results.video_ids])
    order = np.argsort(frames, kind="stable")[(frames == 0).sum() :]
    if not len(order):
        return []
    # A boundary between equal lengths would put like videos into different parts.
    firsts = [part[0] for part in np.array_split(frames[order], LENGTHS) if len(part)]
    found = []
    for part in np.split(order, np.unique(np.searchsorted(frames[order], firsts))):
        if len(part):
            ends = dict.fromkeys((frames[part[0]], frames[part[-1]]))
            name = "–".join(f"{each:,}" for each in ends)
            found.append(Portion(f"{name} frames", len(part), int(results.correct["fused"][part].sum())))
    return found


def by_group(results: Results) -> list[Portion]:
    """Recordings with GROUPED test samples or more, the worst first; empty if there are none."""
    right: dict[str, list[bool]] = {}
    group = {sample.id: sample.group_name for sample in results.cache.dataset.samples}
    for video, correct in zip(results.video_ids, results.correct["fused"].tolist(), strict=True):
        right.setdefault(group[video], []).append(correct)
    parts = [Portion(name, len(each), sum(each)) for name, each in right.items() if len(each) >= GROUPED]
    return sorted(parts, key=lambda part: (part.accuracy, -part.videos, part.name))
