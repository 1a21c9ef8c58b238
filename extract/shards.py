"""The videos of a claim in, their shards and outcomes out: the same shards, whichever video is finished first.

No cache, no ledger, no global state: every engine calls this, on any machine, and decides what becomes of the shards.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from cache.ledger import Claim, Outcome
from cache.shards.protocol import ShardData
from extract.meter import Meter
from extract.pipeline import VideoFeatures, failed


class ShardCutter:
    """Cuts the videos of one claim into shards, in the claim's order."""

    def __init__(self, claim: Claim, shard_rows: int) -> None:
        """`shard_rows`: rows (views of frames) from which on a shard is closed; the next video begins another one."""
        self.claim = claim
        self._shard_rows = shard_rows
        self._waiting: dict[str, VideoFeatures] = {}
        self._order = iter([video.id for video in claim.videos])
        self._next = next(self._order, None)
        self._open: list[VideoFeatures] = []
        self._open_rows = 0

    @property
    def complete(self) -> bool:
        """Whether every video came and is in a shard that was yielded."""
        return self._next is None and not self._open

    def add(self, video: VideoFeatures) -> Iterator[list[VideoFeatures]]:
        """Take a finished video; yields the shards that are full, and the last one once all videos came.

        Where a shard ends depends only on the order and sizes of the videos, so equal claims give equal shards.
        """
        self._waiting[video.outcome.video_id] = video
        while self._next is not None and self._next in self._waiting:
            ready = self._waiting.pop(self._next)
            self._next = next(self._order, None)
            self._open.append(ready)
            self._open_rows += max((each.shape[0] * each.shape[1] for each in ready.features.values()), default=0)
            if self._open_rows >= self._shard_rows or self._next is None:
                full, self._open, self._open_rows = self._open, [], 0
                yield full


def shard_data(videos: Sequence[VideoFeatures]) -> ShardData | None:
    """The features of the videos that have some, side by side; None if none has."""
    kept = [video for video in videos if video.features]
    if not kept:
        return None
    frames = [len(video.pts_seconds) for video in kept]
    return ShardData(
        video_ids=tuple(video.outcome.video_id for video in kept),
        offsets=np.concatenate(([0], np.cumsum(frames))).astype(np.int64),
        pts_seconds=np.concatenate([video.pts_seconds for video in kept]),
        features={
            level: np.concatenate([video.features[level] for video in kept], axis=1) for level in kept[0].features
        },
    )


Extract: TypeAlias = Callable[[Iterable[tuple[str, Path]]], Iterator[VideoFeatures]]
"""Videos (id, path) in, each of them out once, in any order; takes more of its input when it has room."""


@dataclass(frozen=True)
class ExtractTask:
    """A claim with the files of its videos."""

    claim: Claim
    paths: tuple[Path | None, ...]
    """The file of each of the claim's videos; None if the dataset no longer has it."""


@dataclass(frozen=True)
class FinishedShard:
    """Videos that are committed together."""

    claim: Claim
    videos: tuple[VideoFeatures, ...]
    last: bool
    """Whether it is the last one of its claim."""


def shards_of(
    tasks: Iterable[ExtractTask], extract: Extract, *, shard_rows: int, strict: bool, meter: Meter
) -> Iterator[FinishedShard]:
    """The shards of `tasks`, in the order in which they are complete; `extract` draws from the tasks as it has room.

    The same task gives the same shards, whatever runs beside it. `strict`: suspect videos count as failed.
    """
    cutters: dict[str, ShardCutter] = {}
    vanished: list[VideoFeatures] = []

    def videos() -> Iterator[tuple[str, Path]]:
        for task in tasks:
            cutter = ShardCutter(task.claim, shard_rows)
            for video, path in zip(task.claim.videos, task.paths, strict=True):
                cutters[video.id] = cutter
                if path is None:
                    reason = "the file is no longer where the data set is"
                    vanished.append(failed(Outcome(video_id=video.id, status="failed"), reason))
                else:
                    yield video.id, path

    def finish(video: VideoFeatures) -> Iterator[FinishedShard]:
        if strict and video.outcome.status == "suspect":
            video = failed(video.outcome, f"left out by --strict: {video.outcome.reason}")
        meter.finish(video.outcome)
        cutter = cutters.pop(video.outcome.video_id)
        for shard in cutter.add(video):
            yield FinishedShard(cutter.claim, tuple(shard), cutter.complete)

    for video in extract(videos()):
        yield from finish(video)
        while vanished:
            yield from finish(vanished.pop())
    while vanished:
        yield from finish(vanished.pop())
