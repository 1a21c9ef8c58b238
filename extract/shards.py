"""The videos of a claim in, their shards and outcomes out: the same shards, whichever video is finished first.

No cache, no ledger, no global state: every engine calls this, on any machine, and decides what becomes of the shards.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from cache.common.interrupts import Interrupted
from cache.ledger import Claim, FileState, Outcome
from cache.shards.protocol import ShardData
from extract.datasets.changes import file_state, hashed
from extract.datasets.remote import address_of
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

    def unfinished(self) -> list[VideoFeatures]:
        """The videos that came and are in no shard yet."""
        came = [self._waiting[video.id] for video in self.claim.videos if video.id in self._waiting]
        return [*self._open, *came]


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
    paths: Mapping[str, Path | None]
    """The file of each of them; None if the dataset no longer has it."""

    def outcomes(self) -> list[Outcome]:
        """What became of the videos, with the hashes of their files. Reads the files, so it takes a while."""
        return [_with_hash(video.outcome, self.paths[video.outcome.video_id]) for video in self.videos]


def _with_hash(outcome: Outcome, path: Path | None) -> Outcome:
    if path is None or outcome.file is None or address_of(path):
        return outcome
    return replace(outcome, file=hashed(path, outcome.file))


def shards_of(
    tasks: Iterable[ExtractTask], extract: Extract, *, shard_rows: int, strict: bool, meter: Meter
) -> Iterator[FinishedShard]:
    """The shards of `tasks`, in the order in which they are complete; `extract` draws from the tasks as it has room.

    The same task gives the same shards, whatever runs beside it. `strict`: suspect videos count as failed. After
    Ctrl-C the finished videos of each claim come as a shard, before `Interrupted` is raised.
    """
    cutters: dict[str, ShardCutter] = {}
    vanished: list[VideoFeatures] = []
    paths: dict[str, Path] = {}
    files: dict[str, FileState | None] = {}

    def videos() -> Iterator[tuple[str, Path]]:
        for task in tasks:
            cutter = ShardCutter(task.claim, shard_rows)
            for video, path in zip(task.claim.videos, task.paths, strict=True):
                cutters[video.id] = cutter
                if path is None:
                    reason = "the file is no longer where the data set is"
                    vanished.append(failed(Outcome(video_id=video.id, status="failed"), reason))
                else:
                    paths[video.id], files[video.id] = path, file_state(path)
                    yield video.id, path

    def finish(video: VideoFeatures) -> Iterator[FinishedShard]:
        if strict and video.outcome.status == "suspect":
            video = failed(video.outcome, f"left out by --strict: {video.outcome.reason}")
        video_id = video.outcome.video_id
        # A remote video's file has gone again; what its server said of it came with its outcome.
        file = files.pop(video_id, None) or video.outcome.file
        video = replace(video, outcome=replace(video.outcome, file=file))
        meter.finish(video.outcome)
        cutter = cutters.pop(video_id)
        for shard in cutter.add(video):
            yield packed(cutter, shard)

    def packed(cutter: ShardCutter, shard: Sequence[VideoFeatures]) -> FinishedShard:
        its_paths = {each.outcome.video_id: paths.pop(each.outcome.video_id, None) for each in shard}
        return FinishedShard(cutter.claim, tuple(shard), cutter.complete, its_paths)

    try:
        for video in extract(videos()):
            yield from finish(video)
            while vanished:
                yield from finish(vanished.pop())
    except Interrupted:
        for cutter in dict.fromkeys(cutters.values()):
            if shard := cutter.unfinished():
                yield packed(cutter, shard)
        raise
    while vanished:
        yield from finish(vanished.pop())
