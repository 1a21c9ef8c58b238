"""The shards of a cache, opened when first read and kept open, a limited number at a time."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache.errors import CacheError, DamageError
from cache.rows import Place, ShardRow
from cache.schema import Level
from cache.shards import Backend, open_shard
from cache.shards.protocol import ShardReader, check_span, features

_FETCHES = 3
"""How often a shard is fetched that disappears before it is open."""

_OPEN_SHARDS = 128
"""Kept open at a time; well below the usual limit of 1,024 open files, also with three files a shard."""


@dataclass(frozen=True)
class OpenShard:
    """A shard whose index was found to be the one that was committed."""

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
        """DamageError where the ledger says otherwise than the shard of what stands at this place."""
        index, i = self.reader.index, place.position
        there = index.video_ids[i] if 0 <= i < index.num_videos else None
        if there != place.video_id or index.offsets[i + 1] - index.offsets[i] != place.num_frames:
            raise DamageError(
                f"video {place.video_id!r}: the ledger says that it is number {i} of shard {self.reader.path} with "
                f"{place.num_frames} frames; that is {there!r}. `python -m cache verify` lists all damage"
            )


class ShardPool:
    """Open shards by number. Safe to use from several threads and, as nothing in it is shared, in forked children."""

    def __init__(
        self,
        folder: Path,
        backend: Backend,
        rows: Mapping[int, ShardRow],
        fetch: Callable[[ShardRow], Path] | None = None,
    ) -> None:
        """`fetch` brings a shard into `folder` that is not there, or not any more."""
        self.folder, self._backend, self._rows, self._fetch = folder, backend, rows, fetch
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._open: OrderedDict[int, OpenShard] = OrderedDict()

    def shard(self, number: int) -> OpenShard:
        """The shard with this number; DamageError where it is missing or not the one that was committed."""
        if self._process != os.getpid():
            # Another thread may have held the parent's lock at the moment of the fork.
            self._forget()
        with self._lock:
            shard = self._open.get(number)
            if shard is not None:
                self._open.move_to_end(number)
                return shard
        shard = self._opened(number)
        with self._lock:
            self._open[number] = shard
            while len(self._open) > _OPEN_SHARDS:
                # Whoever still reads from it holds a reference; its files are closed after that.
                self._open.popitem(last=False)
        return shard

    def _opened(self, number: int) -> OpenShard:
        row = self._rows.get(number)
        if row is None:
            raise CacheError(f"the ledger speaks of shard {number}, which it does not list; it is damaged")
        reader = self._reader(row)
        if reader.index.content != row.content:
            raise DamageError(
                f"shard {reader.path} is not the one that the ledger lists: it was replaced. "
                "`python -m cache verify` lists all damage, `python -m cache repair` sets it aside"
            )
        return OpenShard(reader, np.zeros(reader.index.checksums.shape, dtype=np.bool_))

    def _reader(self, row: ShardRow) -> ShardReader:
        path = self.folder / row.name
        for _ in range(_FETCHES if self._fetch else 0):
            assert self._fetch is not None
            path = self._fetch(row)
            # Another process may take it away before it is open, to make room for others.
            with suppress(DamageError):
                return open_shard(path, self._backend)
            if path.exists():
                break
        return open_shard(path, self._backend)
