"""Features of many videos in one tensor: what training and scoring read from the cache.

Shapes: N videos, V views, F frames of all videos together, C channels.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cache.console import progress
from cache.errors import DamageError
from cache.reading import OpenShard, ShardPool
from cache.rows import Place
from cache.schema import CHANNELS, Level
from cache.shards.protocol import check_span

if TYPE_CHECKING:
    import torch

_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class FeatureBank:
    """One level's features of some videos, one video after the other."""

    level: Level
    video_ids: tuple[str, ...]
    features: "torch.Tensor"
    """`[V, F, C]` float16 on the device asked for."""
    offsets: NDArray[np.int64]
    """`[N + 1]`: video i has frames `[offsets[i], offsets[i + 1])`."""
    pts_seconds: NDArray[np.float64]
    """`[F]`: time of each frame within its video."""


@dataclass(frozen=True)
class _Run:
    """Videos that follow one another both in a shard and in the bank: one read."""

    first: Place
    count: int
    start: int
    """First frame in the bank."""
    num_frames: int


def load_bank(pool: ShardPool, level: Level, places: Sequence[Place], device: str, views: Sequence[int]) -> FeatureBank:
    """Read whole videos into one tensor, shards in parallel, every checksum verified."""
    import torch

    offsets = np.concatenate([[0], np.cumsum([place.num_frames for place in places])]).astype(np.int64)
    shape = (len(views), int(offsets[-1]), CHANNELS[level])
    # Page-locked memory moves to the GPU at full speed.
    tensor_VFC = torch.empty(shape, dtype=torch.float16, pin_memory=torch.device(device).type == "cuda")
    pts_F = np.empty(shape[1], dtype=np.float64)
    out_VFC = tensor_VFC.numpy()

    def read(run: _Run) -> int:
        return _read_run(pool.shard(run.first.shard), run, level, views, out_VFC, pts_F)

    total = tensor_VFC.nbytes / _MIB
    with progress(f"reading {level} features", round(total), "MiB") as shown, _threads() as threads:
        done = 0
        for num_bytes in threads.map(read, _runs(places, offsets)):
            done += num_bytes
            shown.update(round(done / _MIB))
    return FeatureBank(
        level=level,
        video_ids=tuple(place.video_id for place in places),
        features=tensor_VFC.to(device, non_blocking=True),
        offsets=offsets,
        pts_seconds=pts_F,
    )


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="cache-read")


def _runs(places: Sequence[Place], offsets: NDArray[np.int64]) -> Iterator[_Run]:
    starts = [
        i
        for i, place in enumerate(places)
        if i == 0 or (place.shard, place.position) != (places[i - 1].shard, places[i - 1].position + 1)
    ]
    for start, stop in pairwise([*starts, len(places)]):
        yield _Run(places[start], stop - start, int(offsets[start]), int(offsets[stop] - offsets[start]))


def _read_run(
    shard: OpenShard,
    run: _Run,
    level: Level,
    views: Sequence[int],
    out_VFC: NDArray[np.float16],
    pts_F: NDArray[np.float64],
) -> int:
    index = shard.reader.index
    first, last = run.first.position, run.first.position + run.count
    start, stop = (int(index.offsets[i]) if i <= index.num_videos else -1 for i in (first, last))
    if stop - start != run.num_frames:
        raise DamageError(f"shard {shard.reader.path} and the ledger disagree on the frames of {run.first.video_id!r}")
    pts_F[run.start : run.start + run.num_frames] = index.pts_seconds[start:stop]
    for row, view in enumerate(views):
        span_FC = out_VFC[row, run.start : run.start + run.num_frames]
        shard.reader.read_into(level, view, start, span_FC)
        for i in range(first, last):
            check_span(shard.reader, i, level, view, span_FC[index.offsets[i] - start : index.offsets[i + 1] - start])
    return run.num_frames * CHANNELS[level] * 2 * len(views)
