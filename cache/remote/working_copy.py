"""Local copies of the shards in an object store: fetched whole when first read, checked, kept while there is room."""

import contextlib
import os
import re
import secrets
import shutil
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cache.common.errors import CacheError, DamageError
from cache.common.files import discard
from cache.ledger import SHARD_NAME, ShardRow
from cache.processes import is_dead, this_process
from cache.remote.client import Objects
from cache.remote.log import RecordLog, object_of
from cache.shards.writer import hash_files

TRANSFER: Final = re.compile(r"\.get-(?P<owner>.+)-[0-9a-f]{16}")
"""Names in `shards/` that `LocalCopy.new_name` made, for transfers that go on or were interrupted."""

_THREADS = 8
"""Files of one shard that are downloaded at a time."""

_RESERVE_BYTES = 64 << 20
"""Left free on the disk."""


class LocalCopy:
    """The folder `shards/` of a working copy. Several processes may use it without waiting for each other."""

    def __init__(self, folder: Path, objects: Objects, log: RecordLog, limit_bytes: int) -> None:
        """`limit_bytes`: limit on the bytes of all shards in `folder`; one shard is always allowed."""
        self._folder, self._objects, self._log, self._limit_bytes = folder, objects, log, limit_bytes
        self._lock = threading.Lock()
        self._shard_locks: defaultdict[int, threading.Lock] = defaultdict(threading.Lock)

    def fetch(self, row: ShardRow) -> Path:
        """Returns the shard's local file or folder. Raises `DamageError` if the store's shard was changed."""
        path = self._folder / row.name
        with self._lock:
            lock = self._shard_locks[row.number]
        with lock:
            if not os.path.lexists(path):
                with self.fresh(row) as fetched:
                    self.make_room(row)
                    # If another process was quicker, its copy is kept.
                    with contextlib.suppress(OSError):
                        fetched.rename(path)
        with contextlib.suppress(OSError):
            os.utime(path)
        return path

    @contextmanager
    def fresh(self, row: ShardRow) -> Iterator[Path]:
        """Downloads the shard anew and checks its hash. The path is removed afterwards unless it was renamed."""
        record = self._log.read(row.number)
        if record.shard != row:
            raise DamageError(
                f"record {row.number} of {self._objects.location} does not agree with this ledger about {row.name}"
            )
        temporary = self.new_name()
        try:
            self.download(object_of(row), record.files, temporary)
            written = hash_files(temporary)
            if (written.digest, written.num_bytes) != (row.digest, row.num_bytes):
                raise DamageError(
                    f"shard {row.name}: {self._objects.location}/{object_of(row)} does not have the bytes that were "
                    "written. `mrrn cache verify` lists all damage, `mrrn cache repair` queues it again"
                )
            yield temporary
        finally:
            discard(temporary)

    def download(self, source: str, files: Mapping[str, int], target: Path) -> None:
        """Fetch a shard's files, whose names have been checked. Raises `DamageError` if one has another size."""
        num_bytes, free_bytes = sum(files.values()), shutil.disk_usage(self._folder).free
        if num_bytes + _RESERVE_BYTES > free_bytes:
            raise CacheError(
                f"{self._objects.location}/{source} has {num_bytes >> 20} MiB, and {free_bytes >> 20} MiB are free in "
                f"{self._folder}: make room"
            )
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="shard-files") as threads:
            downloads = []
            for name, file_bytes in files.items():
                path = target / name if name else target
                path.parent.mkdir(parents=True, exist_ok=True)
                remote = f"{source}/{name}" if name else source
                downloads.append(threads.submit(self._objects.download, remote, path, file_bytes))
            for download in downloads:
                download.result()

    def keep(self, staged: str, row: ShardRow) -> None:
        """Give a committed shard its name, if it is on this machine under its name `staged`."""
        self.make_room(row)
        with contextlib.suppress(OSError):
            (self._folder / staged).rename(self._folder / row.name)

    def clear(self) -> None:
        """Remove what dead processes were fetching or removing."""
        for path in self._folder.iterdir():
            if (match := TRANSFER.fullmatch(path.name)) and is_dead(match["owner"]):
                discard(path)

    def new_name(self) -> Path:
        """Returns a temporary name for a shard that is being fetched or removed."""
        return self._folder / f".get-{this_process()}-{secrets.token_hex(8)}"

    def make_room(self, row: ShardRow) -> None:
        """Remove the least recently read shards until there is room for this one.

        Open shards stay readable: the disk frees them when the last reader closes them.
        """
        with self._lock:
            kept = []
            for path in self._folder.iterdir():
                if SHARD_NAME.fullmatch(path.name):
                    with contextlib.suppress(OSError):
                        num_bytes = sum(f.lstat().st_size for f in (path, *path.rglob("*")) if not f.is_dir())
                        kept.append((path.lstat().st_mtime, num_bytes, path))
            used_bytes = row.num_bytes + sum(num_bytes for _, num_bytes, _ in kept)
            for _, num_bytes, path in sorted(kept):
                if used_bytes <= self._limit_bytes:
                    return
                if path.name != row.name:
                    with contextlib.suppress(OSError):
                        discard(path.rename(self.new_name()))
                    used_bytes -= num_bytes
