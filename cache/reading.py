"""Reading features: a pool of open shards, and the features of many videos in one array.

Shapes: N videos, V views, F frames of all videos together, C channels.
"""

import mmap
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cache.common.device import available_bytes
from cache.common.errors import CacheError, DamageError
from cache.common.progress import progress
from cache.description import Description
from cache.fingerprint import Level
from cache.ledger import Place, ShardRow
from cache.shards import open_shard
from cache.shards.protocol import ShardReader, check_span, features

if TYPE_CHECKING:
    import torch


_FETCHES = 3
"""Attempts at a shard that another process removes before it is open."""

_OPEN_SHARDS = 128
"""Shards kept open at a time; well below the usual limit of 1,024 open files, also with three files a shard."""


@dataclass(frozen=True)
class OpenShard:
    """A shard whose index is the one that was committed."""

    reader: ShardReader
    verified: NDArray[np.bool_]
    """`[N, levels, V]`: spans whose checksum this process has verified."""

    def features(self, place: Place, level: Level, view: int, start: int, stop: int) -> NDArray[np.float16]:
        """Frames `[start, stop)` of one video, `[F, C]`; the whole video is verified when it is first read."""
        index = self.reader.index
        self.check_place(place)
        key = (place.position, index.levels.index(level), view)
        if self.verified[key]:
            return features(self.reader, place.position, level, view, start, stop)
        whole_FC = features(self.reader, place.position, level, view, 0, place.num_frames)
        check_span(self.reader, place.position, level, view, whole_FC)
        self.verified[key] = True
        return whole_FC[start:stop]

    def check_place(self, place: Place) -> None:
        """Raises `DamageError` if the shard has another video, or another number of frames, at this place."""
        index, i = self.reader.index, place.position
        there = index.video_ids[i] if 0 <= i < index.num_videos else None
        if there != place.video_id or index.offsets[i + 1] - index.offsets[i] != place.num_frames:
            raise DamageError(
                f"video {place.video_id!r}: the ledger says that it is number {i} of shard {self.reader.path} with "
                f"{place.num_frames} frames; that is {there!r}. `mrrn cache verify` lists all damage"
            )


class ShardPool:
    """Open shards by number. Safe to use from several threads and, as nothing in it is shared, in forked children."""

    def __init__(
        self,
        folder: Path,
        description: Description,
        rows: Mapping[int, ShardRow],
        fetch: Callable[[ShardRow], Path],
    ) -> None:
        """`fetch` returns the path of a shard, which another process may remove before it is open."""
        self.folder, self._backend, self._rows, self._fetch = folder, description.backend, rows, fetch
        self.widths = description.widths
        """Channels of each level."""
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._open: OrderedDict[int, OpenShard] = OrderedDict()

    def shard(self, number: int) -> OpenShard:
        """Returns the shard with this number. Raises `DamageError` if it is missing or not the one committed."""
        if self._process != os.getpid():
            # Another thread may have held the parent's lock at the moment of the fork.
            self._forget()
        with self._lock:
            shard = self._open.get(number)
            if shard is not None:
                self._open.move_to_end(number)
                return shard
        row = self._rows.get(number)
        if row is None:
            raise CacheError(f"the ledger refers to shard {number}, which it does not list; it is damaged")
        reader = self._reader(row)
        if reader.index.content != row.content:
            raise DamageError(
                f"shard {reader.path} is not the one that the ledger lists: it was replaced. "
                "`mrrn cache verify` lists all damage, `mrrn cache repair` queues it again"
            )
        if reader.widths != self.widths:
            raise DamageError(f"shard {reader.path} has levels {reader.widths}, its cache {self.widths}")
        shard = OpenShard(reader, np.zeros(reader.index.checksums.shape, dtype=np.bool_))
        with self._lock:
            self._open[number] = shard
            while len(self._open) > _OPEN_SHARDS:
                # Its files are closed when the last reader drops its reference.
                self._open.popitem(last=False)
        return shard

    def _reader(self, row: ShardRow) -> ShardReader:
        for _ in range(_FETCHES - 1):
            path = self._fetch(row)
            try:
                return open_shard(path, self._backend)
            except DamageError:
                if path.exists():
                    raise
        return open_shard(self._fetch(row), self._backend)


_MIB = 1 << 20
_TASK_BYTES = 16 * _MIB
"""What one thread reads at a time: large enough to be fast, small enough to be shared out evenly."""


@dataclass(frozen=True, kw_only=True)
class FeatureBank:
    """One level's features of some videos, one video after the other."""

    level: Level
    video_ids: tuple[str, ...]
    features: "torch.Tensor"
    """`[V, F, C]` float16 on the requested device; backed by a file if it does not fit into memory."""
    offsets: NDArray[np.int64]
    """`[N + 1]`: video i has frames `[offsets[i], offsets[i + 1])`."""
    pts_seconds: NDArray[np.float64]
    """`[F]`: time of each frame within its video."""


def offsets_of(places: Sequence[Place]) -> NDArray[np.int64]:
    """`[N + 1]`: first frame of each video when they are put one after the other."""
    return np.concatenate([[0], np.cumsum([place.num_frames for place in places])]).astype(np.int64)


def load_bank(pool: ShardPool, level: Level, places: Sequence[Place], device: str, views: Sequence[int]) -> FeatureBank:
    """Read whole videos into one tensor, shards in parallel, every checksum verified."""
    import torch

    offsets = offsets_of(places)
    shape = (len(views), int(offsets[-1]), pool.widths[level])
    if torch.device(device).type == "cuda":
        tensor_VFC = torch.empty(shape, dtype=torch.float16, device=device)
        span = upload_to(tensor_VFC)
    else:
        array_VFC = allocate(shape, pool.folder)
        tensor_VFC, span = torch.from_numpy(array_VFC), place_in(array_VFC)
    return FeatureBank(
        level=level,
        video_ids=tuple(place.video_id for place in places),
        pts_seconds=read_features(pool, level, places, views, span),
        features=tensor_VFC,
        offsets=offsets,
    )


Span = Callable[[int, slice], AbstractContextManager[NDArray[np.float16]]]
"""Index of a view, frames -> memory `[F, C]` to read them into, which is taken over when the context ends."""


def place_in(array_VFC: NDArray[np.float16]) -> Span:
    """Returns the parts of an array themselves."""
    return lambda row, frames: nullcontext(array_VFC[row, frames])


def upload_to(tensor_VFC: "torch.Tensor") -> Span:
    """Returns page-locked memory of the calling thread, from which a part of a tensor on a GPU is copied at full speed.

    So only as much memory is page-locked as the threads read at a time.
    """
    import torch

    own = threading.local()

    @contextmanager
    def span(row: int, frames: slice) -> Iterator[NDArray[np.float16]]:
        wanted_FC = tensor_VFC[row, frames]
        with torch.cuda.device_of(tensor_VFC):
            if not hasattr(own, "buffer") or len(own.buffer) < wanted_FC.numel():
                numel = max(wanted_FC.numel(), _TASK_BYTES // tensor_VFC.itemsize)
                own.buffer = torch.empty(numel, dtype=tensor_VFC.dtype, pin_memory=tensor_VFC.is_cuda)
            read_FC = own.buffer[: wanted_FC.numel()].view_as(wanted_FC)
            yield read_FC.numpy()
            wanted_FC.copy_(read_FC)

    return span


def allocate(shape: tuple[int, ...], folder: Path) -> NDArray[np.float16]:
    """Returns an uninitialised float16 array: in memory, or, if that is too small, in a mapped file below `folder`.

    The file has no name and is removed with the array.
    """
    num_bytes = prod(shape) * 2
    if num_bytes <= available_bytes() // 2:
        return np.empty(shape, dtype=np.float16)
    with tempfile.TemporaryFile(dir=folder) as file:
        # Allocates the space now: a full disk is an error here instead of a crash when a page is first written.
        os.posix_fallocate(file.fileno(), 0, num_bytes)
        return np.frombuffer(mmap.mmap(file.fileno(), num_bytes), dtype=np.float16).reshape(shape)


def read_features(
    pool: ShardPool, level: Level, places: Sequence[Place], views: Sequence[int], span: Span
) -> NDArray[np.float64]:
    """Read the given views of whole videos, each to the `span` of its frames, and return the frames' times `[F]`.

    Shards are read in parallel and every checksum is verified. Raises `DamageError` naming the first damaged video.
    """
    offsets = offsets_of(places)
    pts_F = np.empty(int(offsets[-1]), dtype=np.float64)
    frame_bytes = len(views) * pool.widths[level] * 2

    def read(run: tuple[int, int]) -> int:
        """Videos `[start, stop)`, which follow one another both in a shard and in `places`: one read a view."""
        videos = places[slice(*run)]
        shard = pool.shard(videos[0].shard)
        for place in videos:
            shard.check_place(place)
        index = shard.reader.index
        first, last = videos[0].position, videos[-1].position + 1
        start, stop = int(index.offsets[first]), int(index.offsets[last])
        frames = slice(*offsets[list(run)].tolist())
        pts_F[frames] = index.pts_seconds[start:stop]
        for row, view in enumerate(views):
            with span(row, frames) as span_FC:
                shard.reader.read_into(level, view, start, span_FC)
                for i in range(first, last):
                    video_FC = span_FC[index.offsets[i] - start : index.offsets[i + 1] - start]
                    check_span(shard.reader, i, level, view, video_FC)
        return (stop - start) * frame_bytes

    total = round(len(pts_F) * frame_bytes / _MIB)
    threads = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="cache-read")
    with progress(f"reading {level} features", total, "MiB") as shown, threads:
        done = 0
        for num_bytes in threads.map(read, _runs(places, offsets, frame_bytes)):
            done += num_bytes
            shown.update(round(done / _MIB))
    return pts_F


def _runs(places: Sequence[Place], offsets: NDArray[np.int64], frame_bytes: int) -> Iterator[tuple[int, int]]:
    """Yields `[start, stop)` of videos that one thread reads at once."""
    starts, run_start = [0], 0
    for i in range(1, len(places)):
        follows = (places[i].shard, places[i].position) == (places[i - 1].shard, places[i - 1].position + 1)
        if not follows or (offsets[i] - run_start) * frame_bytes >= _TASK_BYTES:
            starts.append(i)
            run_start = offsets[i]
    return pairwise([*starts, len(places)] if places else [])
