"""Finished videos of one claim into shards: the same videos in the same order, whatever finished first."""

from collections.abc import Iterator, Sequence

import numpy as np

from cache.ledger import Claim
from cache.shards.protocol import ShardData
from extract.pipeline import VideoFeatures


class Group:
    """The videos of one claim, cut into shards in the claim's order."""

    def __init__(self, claim: Claim, shard_rows: int) -> None:
        """`shard_rows`: a shard is closed once it has so many rows (views of frames); the next video begins another."""
        self.claim = claim
        self._shard_rows = shard_rows
        self._waiting: dict[str, VideoFeatures] = {}
        self._order = iter([video.id for video in claim.videos])
        self._next = next(self._order, None)
        self._open: list[VideoFeatures] = []
        self._open_rows = 0

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
            self._open.append(ready)
            self._open_rows += num_rows(ready)
            if self._open_rows >= self._shard_rows or self._next is None:
                yield self._close()

    def _close(self) -> list[VideoFeatures]:
        videos, self._open, self._open_rows = self._open, [], 0
        return videos


def num_rows(video: VideoFeatures) -> int:
    """Views of frames that a video has features of; all levels have the same."""
    return max((features.shape[0] * features.shape[1] for features in video.features.values()), default=0)


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
