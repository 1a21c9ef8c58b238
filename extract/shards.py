"""Finished videos of one claim into shards: the same videos in the same order, whatever finished first."""

from collections.abc import Iterator, Sequence

import numpy as np

from cache.ledger import Claim
from cache.shards.protocol import ShardData
from extract.pipeline import VideoFeatures

SHARD_BYTES = 256 << 20
"""A shard is closed before its features pass this size; a longer video has a shard of its own."""


class Group:
    """The videos of one claim, cut into shards in the claim's order."""

    def __init__(self, claim: Claim, shard_bytes: int = SHARD_BYTES) -> None:
        self.claim = claim
        self._shard_bytes = shard_bytes
        self._waiting: dict[str, VideoFeatures] = {}
        self._order = iter([video.id for video in claim.videos])
        self._next = next(self._order, None)
        self._open: list[VideoFeatures] = []
        self._open_bytes = 0

    @property
    def complete(self) -> bool:
        """Every video came and is in a shard that was given out."""
        return self._next is None and not self._open

    def add(self, video: VideoFeatures) -> Iterator[list[VideoFeatures]]:
        """Take a finished video; give out the shards that are full, or complete because all videos came.

        Where a shard ends depends on the order and sizes alone, so equal work gives equal shards.
        """
        self._waiting[video.outcome.video_id] = video
        while self._next is not None and self._next in self._waiting:
            ready = self._waiting.pop(self._next)
            self._next = next(self._order, None)
            if self._open and self._open_bytes + num_bytes(ready) > self._shard_bytes:
                yield self._close()
            self._open.append(ready)
            self._open_bytes += num_bytes(ready)
        if self._next is None and self._open:
            yield self._close()

    def _close(self) -> list[VideoFeatures]:
        videos, self._open, self._open_bytes = self._open, [], 0
        return videos


def num_bytes(video: VideoFeatures) -> int:
    """Size of a video's features."""
    return sum(features.nbytes for features in video.features.values())


def shard_data(videos: Sequence[VideoFeatures]) -> ShardData | None:
    """The features of those videos that have some, side by side; None where none has."""
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
