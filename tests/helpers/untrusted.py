"""Caches made to deceive, for tests: shards changed so that the ledger's hashes fit; a watch over what is outside."""

import contextlib
import ctypes
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cache.common.errors import CacheError
from cache.shards.writer import hash_files
from cache.store import FeatureCache
from cache.verify import verify
from tests.helpers.cache import make_fingerprint, make_shard

TERA = 10**12


class Watch:
    """Whether anybody opens, reads or changes what is in a folder; asked of the kernel (Linux inotify)."""

    def __init__(self, folder: Path) -> None:
        access, modify, opened = 1, 2, 32
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK)
        for path in (folder, *folder.rglob("*")):
            assert libc.inotify_add_watch(self._descriptor, os.fsencode(path), access | modify | opened) >= 0

    def touched(self) -> bool:
        """Whether it happened since the last question."""
        with contextlib.suppress(BlockingIOError):
            return bool(os.read(self._descriptor, 1 << 16))
        return False

    def close(self) -> None:
        os.close(self._descriptor)


def shard_data() -> Any:
    return make_shard([f"c{i % 2}/v{i:05d}" for i in (0, 2, 1, 3)])


def sql(cache: Path, statement: str, *values: Any) -> None:
    with contextlib.closing(sqlite3.connect(cache / "ledger.sqlite")) as connection, connection:
        connection.execute(statement, values)


def smuggle(cache: Path, craft: Callable[[Path], object]) -> Path:
    """Change the cache's only shard, and the ledger and its name so that they agree with its new bytes."""
    (shard,) = (cache / "shards").iterdir()
    craft(shard)
    if is_hollow(shard):
        return shard
    try:
        written = hash_files(shard)
    except OSError:
        # What is no plain file has no hash: nobody could write one into the ledger.
        return shard
    renamed = shard.rename(shard.with_name(f"000000-{written.digest[:16]}{shard.suffix}"))
    sql(cache, "UPDATE shards SET name = ?, digest = ?, num_bytes = ?", renamed.name, written.digest, written.num_bytes)
    return renamed


def is_hollow(shard: Path) -> bool:
    """Whether it has terabytes of nothing, which nobody would want to hash in a test."""
    files = [] if shard.is_symlink() else [shard, *shard.rglob("*")]
    return any(file.is_file() and file.stat().st_size > 1 << 30 for file in files)


def assert_refused(path: Path, shard: Path) -> None:
    """By every way of reading; each error names the shard."""
    with FeatureCache.open(path) as cache:
        for read in (
            lambda: cache.features(cache.video_ids[0], "low"),
            lambda: cache.pts_seconds(cache.video_ids[0]),
        ):
            with pytest.raises(CacheError) as caught:
                read()
            assert str(shard) in str(caught.value)
    if is_hollow(shard):
        return
    assert [shard.name in finding.what for finding in verify(path)] == [True]
    # As something that the ledger does not know, it is not adopted either.
    sql(path, "UPDATE videos SET status = 'pending', shard = NULL, position = NULL, num_frames = 0")
    sql(path, "DELETE FROM shards")
    with FeatureCache.open_for_extraction(path, make_fingerprint()) as cache:
        assert cache.video_ids == ()
