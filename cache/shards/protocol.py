"""One shard: the features of some videos as arrays, and the contract for reading and writing it in either format.

Shapes: N videos, V views, F frames of all videos together, C channels. Video i has frames `[offsets[i], offsets[i+1])`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from cache.common.errors import CacheError, DamageError, UnsafePathError
from cache.dataset import check_relative_path
from cache.fingerprint import LEVELS, Level

MAX_INDEX_BYTES = 1 << 30
"""Far above the size of any shard's index; whatever declares more was made up and gets no memory."""


def checksum(span_FC: NDArray[np.float16]) -> int:
    """xxh3_64 of one video's features of one level and view, `[F, C]`."""
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(span_FC).data)


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """Everything in a shard except the features; small, and checked as a whole by `content`."""

    video_ids: tuple[str, ...]
    offsets: NDArray[np.int64]
    """`[N + 1]`: first frame of each video, and the number of all frames."""
    pts_seconds: NDArray[np.float64]
    """`[F]`: time of each frame."""
    checksums: NDArray[np.uint64]
    """`[N, levels, V]`: `checksum` of each video's features."""
    levels: tuple[Level, ...]
    notes: str
    """JSON: what the ledger's rows of these videos say (`cache.commit.ShardNotes`)."""

    @property
    def num_videos(self) -> int:
        """N."""
        return len(self.video_ids)

    @property
    def num_frames(self) -> int:
        """F."""
        return int(self.offsets[-1])

    @property
    def num_views(self) -> int:
        """V."""
        return int(self.checksums.shape[2])

    @cached_property
    def content(self) -> str:
        """Hash of the index, in hex; the same in either format."""
        digest = xxhash.xxh3_128()
        texts = ("\n".join(self.video_ids), " ".join(self.levels), self.notes)
        arrays = (self.offsets, self.pts_seconds, self.checksums)
        for part in (*(text.encode() for text in texts), *(array.tobytes() for array in arrays)):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        return digest.hexdigest()

    def check(self) -> None:
        """Raises `CacheError` if the parts do not fit together; what has passed needs no further checks."""
        if not self.video_ids or len(set(self.video_ids)) != len(self.video_ids):
            raise CacheError(f"a shard of {self.num_videos} videos: there must be one, and no id twice")
        for video_id in self.video_ids:
            try:
                check_relative_path(video_id)
            except UnsafePathError as error:
                raise CacheError(f"video id {video_id!r} cannot be stored: {error}") from error
        if not self.levels or any(level not in LEVELS for level in self.levels):
            raise CacheError(f"a shard has levels {self.levels}; known are {LEVELS}")
        _expect("offsets", self.offsets, (self.num_videos + 1,), np.int64)
        if self.offsets[0] != 0 or (np.diff(self.offsets) < 1).any():
            raise CacheError("a shard's offsets must start at 0 and grow: a video without frames is a failed one")
        _expect("pts_seconds", self.pts_seconds, (self.num_frames,), np.float64)
        _expect("checksums", self.checksums, (self.num_videos, len(self.levels), self.num_views), np.uint64)
        if self.num_views < 1:
            raise CacheError("a shard has no views; view 0, the center, is always there")
        for i, video_id in enumerate(self.video_ids):
            pts = self.pts_seconds[self.offsets[i] : self.offsets[i + 1]]
            if not np.isfinite(pts).all() or (np.diff(pts) < 0).any():
                raise CacheError(f"video {video_id!r}: frame times are not finite and ascending")


@dataclass(frozen=True, kw_only=True)
class ShardData:
    """A shard in memory, on its way to disk; checked when made."""

    video_ids: tuple[str, ...]
    """Of videos with at least one frame each."""
    offsets: NDArray[np.int64]
    """`[N + 1]`."""
    pts_seconds: NDArray[np.float64]
    """`[F]`, finite and ascending within a video."""
    features: Mapping[Level, NDArray[np.float16]]
    """`[V, F, C]` of each level, finite."""
    notes: str = "{}"
    """See `ShardIndex.notes`; filled when the shard is staged."""

    def __post_init__(self) -> None:
        _expect("offsets", self.offsets, (len(self.video_ids) + 1,), np.int64)
        self.index.check()
        for level, features_VFC in self.features.items():
            shape = (self.index.num_views, self.index.num_frames, self.widths[level])
            _expect(f"features[{level!r}]", features_VFC, shape, np.float16)
            bad_F = ~np.isfinite(features_VFC).all(axis=(0, 2))
            if bad_F.any():
                video = int(np.searchsorted(self.offsets, np.flatnonzero(bad_F)[0], side="right")) - 1
                raise CacheError(
                    f"video {self.video_ids[video]!r}: features of level {level} are not finite in {int(bad_F.sum())} "
                    "frames; extract it with --precision fp32, or record it as failed"
                )

    @property
    def widths(self) -> dict[Level, int]:
        """Channels of each level."""
        return {level: self.features[level].shape[-1] for level in self.index.levels}

    @cached_property
    def index(self) -> ShardIndex:
        """Everything except the features, with their checksums."""
        levels = tuple(level for level in LEVELS if level in self.features)
        if len(levels) != len(self.features):
            raise CacheError(f"features have levels {sorted(self.features)}; known are {LEVELS}")
        views = {features.shape[0] if features.ndim == 3 else -1 for features in self.features.values()}
        if len(views) != 1:
            raise CacheError(f"features must be [V, F, C] with one V for all levels; got V = {sorted(views)}")
        checksums = [
            [[checksum(view_FC[start:stop]) for view_FC in self.features[level]] for level in levels]
            for start, stop in pairwise(self.offsets.tolist())
        ]
        return ShardIndex(
            video_ids=tuple(self.video_ids),
            offsets=self.offsets,
            pts_seconds=self.pts_seconds,
            checksums=np.array(checksums, dtype=np.uint64).reshape(len(checksums), len(levels), max(views)),
            levels=levels,
            notes=self.notes,
        )


class ShardReader(Protocol):
    """A shard on disk, opened and checked for structure. Safe to use from several threads and after a fork."""

    path: Path
    index: ShardIndex
    widths: dict[Level, int]
    """Channels of each level."""

    def read_into(self, level: Level, view: int, start: int, out_FC: NDArray[np.float16]) -> None:
        """Fill `out_FC` with frames `[start, start + len(out_FC))`. Raises `DamageError` if the file is too short."""


def features(reader: ShardReader, i: int, level: Level, view: int, start: int, stop: int) -> NDArray[np.float16]:
    """Returns frames `[start, stop)` of the shard's video `i`, `[F, C]`, without checking the checksum."""
    first = int(reader.index.offsets[i])
    assert 0 <= start <= stop <= int(reader.index.offsets[i + 1]) - first
    out_FC = np.empty((stop - start, reader.widths[level]), dtype=np.float16)
    reader.read_into(level, view, first + start, out_FC)
    return out_FC


def check_span(reader: ShardReader, i: int, level: Level, view: int, span_FC: NDArray[np.float16]) -> None:
    """Raises `DamageError` naming the video unless `span_FC` is what was committed for video `i`."""
    index = reader.index
    if checksum(span_FC) != int(index.checksums[i, index.levels.index(level), view]):
        raise DamageError(
            f"video {index.video_ids[i]!r}: level {level}, view {view} in {reader.path} is not what was written "
            "(checksum differs). `mrrn cache verify` lists all damage, `mrrn cache repair` queues it again"
        )


def damaged_videos(reader: ShardReader) -> list[str]:
    """Returns the ids of videos with a level or view that was damaged; reads everything."""
    damaged = []
    index = reader.index
    for i, video_id in enumerate(index.video_ids):
        length = int(index.offsets[i + 1] - index.offsets[i])
        try:
            for level in index.levels:
                for view in range(index.num_views):
                    check_span(reader, i, level, view, features(reader, i, level, view, 0, length))
        except DamageError:
            damaged.append(video_id)
    return damaged


def read_shard(reader: ShardReader) -> ShardData:
    """The whole shard in memory, every checksum verified."""
    index = reader.index
    whole: dict[Level, NDArray[np.float16]] = {}
    for level in index.levels:
        whole[level] = np.empty((index.num_views, index.num_frames, reader.widths[level]), dtype=np.float16)
        for view, out_FC in enumerate(whole[level]):
            reader.read_into(level, view, 0, out_FC)
            for i in range(index.num_videos):
                check_span(reader, i, level, view, out_FC[index.offsets[i] : index.offsets[i + 1]])
    return ShardData(
        video_ids=index.video_ids,
        offsets=index.offsets,
        pts_seconds=index.pts_seconds,
        features=whole,
        notes=index.notes,
    )


def _expect(name: str, array: NDArray[np.generic], shape: tuple[int, ...], dtype: type) -> None:
    if array.shape != shape or array.dtype != np.dtype(dtype):
        raise CacheError(f"a shard's {name} is {array.dtype} {array.shape}; expected {np.dtype(dtype)} {shape}")
