"""The work of a task: the videos of a claim in, their shards and outcomes out. Every engine does this, anywhere.

No cache, no ledger, no global state: whoever calls decides how videos get here and what becomes of the shards.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from cache.ledger import Claim, Outcome
from extract.meter import Meter
from extract.pipeline import VideoFeatures, failed
from extract.shards import Group

VANISHED: Final = "the file is no longer where the data set is"

Extract: TypeAlias = Callable[[Iterable[tuple[str, Path]]], Iterator[VideoFeatures]]
"""Videos (id, path) in, each of them out once, in any order; draws from its input as it can take more."""


@dataclass(frozen=True)
class Task:
    """Videos to work on."""

    claim: Claim
    paths: tuple[Path | None, ...]
    """The file of each of the claim's videos; None where the data set has it no longer."""


@dataclass(frozen=True)
class FinishedShard:
    """Videos that go into the cache together."""

    claim: Claim
    videos: tuple[VideoFeatures, ...]
    last: bool
    """Nothing more comes of this claim."""


def shards_of(
    tasks: Iterable[Task], extract: Extract, *, shard_rows: int, strict: bool, meter: Meter
) -> Iterator[FinishedShard]:
    """The shards of `tasks`, in the order in which they are complete; tasks are drawn from as videos are.

    The same task gives the same shards, whatever runs beside it. `strict`: suspect videos count as failed.
    """
    groups: dict[str, Group] = {}
    vanished: list[VideoFeatures] = []

    def videos() -> Iterator[tuple[str, Path]]:
        for task in tasks:
            group = Group(task.claim, shard_rows)
            for video, path in zip(task.claim.videos, task.paths, strict=True):
                groups[video.id] = group
                if path is None:
                    vanished.append(failed(Outcome(video_id=video.id, status="failed"), VANISHED))
                else:
                    yield video.id, path

    def finish(video: VideoFeatures) -> Iterator[FinishedShard]:
        video = _judged(video, strict)
        meter.finish(video.outcome)
        group = groups.pop(video.outcome.video_id)
        for shard in group.add(video):
            yield FinishedShard(group.claim, tuple(shard), group.complete)

    for video in extract(videos()):
        yield from finish(video)
        while vanished:
            yield from finish(vanished.pop())
    while vanished:
        yield from finish(vanished.pop())


def _judged(video: VideoFeatures, strict: bool) -> VideoFeatures:
    if strict and video.outcome.status == "suspect":
        return failed(video.outcome, f"left out by --strict: {video.outcome.reason}")
    return video
