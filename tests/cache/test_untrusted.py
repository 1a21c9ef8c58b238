"""Caches made to deceive: links and pipes in place of their files, journals beside the ledger, links in the way.

Each is refused with an error that names the file, and nothing outside of the cache is read or written. Shards made to
deceive are in `shards/`, object stores in `remote/`.
"""

import contextlib
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from cache.common.errors import CacheError, MrrnError
from cache.repair import repair
from cache.store import FeatureCache
from cache.verify import verify
from tests.cache.shards.test_untrusted_hdf5 import HDF5
from tests.helpers.cache import filled_cache
from tests.helpers.untrusted import Watch, assert_refused, smuggle


def move_out(path: Path, outside: Path) -> None:
    shutil.move(path, outside / "moved")
    path.symlink_to(outside / "moved")


@pytest.mark.parametrize("name", ["cache.json", "dataset.json", "ledger.sqlite", "shards"])
def test_links_in_place_of_a_caches_own_files_are_not_followed(
    tmp_path: Path, outside: Path, watch: Watch, name: str
) -> None:
    path = filled_cache(tmp_path / "c", 4).path
    move_out(path / name, outside)
    watch.touched()
    with pytest.raises(MrrnError, match=name):
        FeatureCache.open(path)
    assert [name in finding.what for finding in verify(path)] == [True]
    assert not watch.touched()


@pytest.mark.parametrize("name", ["cache.json", "dataset.json"])
def test_a_terabyte_in_place_of_a_caches_description_is_not_read(tmp_path: Path, name: str) -> None:
    path = filled_cache(tmp_path / "c", 4).path
    with (path / name).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(MrrnError, match=f"{name} .*1,099,511,627,776 bytes; expected at most"):
        _ = FeatureCache.open(path).dataset


@pytest.mark.parametrize("backend", ["h5", "zarr"])
def test_a_link_or_pipe_in_place_of_a_shard_is_not_followed(
    tmp_path: Path, outside: Path, watch: Watch, backend: str
) -> None:
    for name, replace in {"a link": lambda shard: shard.symlink_to(outside / "moved"), "a pipe": os.mkfifo}.items():
        path = filled_cache(tmp_path / name, 4, backend=backend).path
        (shard,) = (path / "shards").iterdir()
        shutil.move(shard, outside / "moved")
        replace(shard)
        watch.touched()
        with FeatureCache.open(path) as cache, pytest.raises(CacheError, match=shard.name):
            cache.load("low", cache.video_ids)
        assert_refused(path, shard)
        assert not watch.touched()
        shutil.rmtree(outside / "moved") if backend == "zarr" else (outside / "moved").unlink()


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
def test_sqlite_does_not_write_through_links_beside_the_ledger(
    tmp_path: Path, outside: Path, watch: Watch, suffix: str
) -> None:
    path = filled_cache(tmp_path / "c", 4).path
    (path / f"ledger.sqlite{suffix}").symlink_to(outside / "secret.bin")
    before = (outside / "secret.bin").read_bytes()
    watch.touched()
    with pytest.raises(CacheError, match=f"ledger.sqlite{suffix}"), FeatureCache.open(path) as cache:
        cache.requeue(["done"])
    assert verify(path)
    assert not watch.touched()
    assert (outside / "secret.bin").read_bytes() == before


def test_a_rollback_journal_is_not_played_back(tmp_path: Path) -> None:
    """SQLite would write into the ledger what the journal says, and look for a file that it names."""
    path = filled_cache(tmp_path / "c", 4).path
    journal, before = path / "ledger.sqlite-journal", (path / "ledger.sqlite").read_bytes()
    journal.write_bytes(hot_journal())
    trusting = shutil.copytree(path, tmp_path / "copy") / "ledger.sqlite"
    with pytest.raises(CacheError, match=r"ledger\.sqlite-journal"), FeatureCache.open(path) as cache:
        cache.ledger.counts()
    assert (path / "ledger.sqlite").read_bytes() == before
    assert any("-journal" in line for line in repair(path))
    assert verify(path) == []
    with contextlib.closing(sqlite3.connect(trusting)) as connection, pytest.raises(sqlite3.DatabaseError):
        connection.execute("SELECT count(*) FROM videos")
    assert trusting.stat().st_size < len(before), "the journal would have harmed nobody, and the test shows nothing"


def hot_journal() -> bytes:
    """A journal in SQLite's format that cuts the ledger down to one page."""
    head = bytes.fromhex("d9d505f920a163d7") + b"".join(n.to_bytes(4, "big") for n in (0, 0, 1, 512, 4096))
    return head.ljust(1024, b"\0")


def test_a_link_where_a_file_is_to_be_written_is_not_followed(tmp_path: Path, outside: Path, watch: Watch) -> None:
    cache = filled_cache(tmp_path / "c", 4)
    dataset = cache.dataset
    (cache.path / f".tmp-{os.getpid()}-dataset.json").symlink_to(outside / "secret.bin")
    watch.touched()
    cache.replace_dataset(dataset)
    assert not watch.touched()
    assert FeatureCache.open(cache.path).dataset == dataset


def test_repair_moves_nothing_out_of_the_cache(tmp_path: Path, outside: Path) -> None:
    path = filled_cache(tmp_path / "c", 4).path
    (path / "quarantine").symlink_to(outside)
    shard = smuggle(path, lambda shard: HDF5["chunks"](shard, outside))
    before = sorted(outside.iterdir())
    with pytest.raises(CacheError, match="quarantine"):
        repair(path)
    assert sorted(outside.iterdir()) == before
    assert shard.exists()
