"""A ledger belongs to one cache, and a shard that it does not list may still be good: it is never deleted."""

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from cache.common.errors import CacheError
from cache.common.files import read_sealed_json, write_sealed_json
from cache.convert import convert
from cache.export import export
from cache.info import cache_info
from cache.repair import repair
from cache.shards import BACKENDS
from cache.store import FeatureCache
from cache.verify import verify
from tests.helpers.cache import fill, filled_cache, make_cache, make_fingerprint

COMMANDS: dict[str, Callable[[Path], object]] = {
    "extract": lambda path: FeatureCache.open_for_extraction(path, make_fingerprint()),
    "load": lambda path: FeatureCache.open(path).load("mid", FeatureCache.open(path).video_ids),
    "info": lambda path: cache_info(FeatureCache.open(path)),
    "repair": repair,
    "convert": lambda path: convert(FeatureCache.open(path), path.with_name("converted"), "zarr"),
    "export": lambda path: export(FeatureCache.open(path), path.with_name("exported"), "npz", "video"),
}


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("ledger.")
    }


def without_id(cache: Path) -> None:
    """Make it what an earlier version wrote."""
    value = read_sealed_json(cache / "cache.json")
    del value["cache_id"]
    write_sealed_json(cache / "cache.json", value)
    connection = sqlite3.connect(cache / "ledger.sqlite")
    connection.execute("PRAGMA application_id = 0")
    connection.close()


def ids(cache: Path) -> tuple[int, int]:
    """In cache.json, and in the ledger."""
    connection = sqlite3.connect(cache / "ledger.sqlite")
    found = connection.execute("PRAGMA application_id").fetchone()[0]
    connection.close()
    return read_sealed_json(cache / "cache.json").get("cache_id", 0), found


@pytest.mark.parametrize("other", ["another dataset", "the same videos", "an earlier version"])
@pytest.mark.parametrize("command", COMMANDS)
def test_the_ledger_of_another_cache_is_refused_and_nothing_is_touched(
    tmp_path: Path, command: str, other: str
) -> None:
    path = filled_cache(tmp_path / "c", 20).path
    foreign = filled_cache(tmp_path / "other", 20 if other == "the same videos" else 12, shard_videos=5).path
    if other == "an earlier version":
        without_id(foreign)
    shutil.copy(foreign / "ledger.sqlite", path / "ledger.sqlite")
    before = files(path)
    with pytest.raises(CacheError, match=r"ledger of another cache.*repair"):
        COMMANDS[command](path)
    assert any("ledger of another cache" in finding.what for finding in verify(path))
    assert files(path) == before
    # What the message says to do.
    (path / "ledger.sqlite").unlink()
    repair(path)
    assert verify(path) == []
    assert len(FeatureCache.open(path).video_ids) == 20


def test_each_cache_has_an_id_of_its_own_which_stays(tmp_path: Path) -> None:
    for name in ("a", "b"):
        fill(make_cache(tmp_path / name, 4))
    (a, in_ledger), (b, _) = ids(tmp_path / "a"), ids(tmp_path / "b")
    assert a == in_ledger != b
    FeatureCache.open_for_extraction(tmp_path / "a", make_fingerprint()).close()
    (tmp_path / "a/ledger.sqlite").unlink()
    repair(tmp_path / "a")
    assert ids(tmp_path / "a") == (a, a)


def test_a_cache_of_an_earlier_version_opens_and_gets_an_id_when_written_to(tmp_path: Path) -> None:
    path = filled_cache(tmp_path / "c", 8).path
    without_id(path)
    with FeatureCache.open(path) as cache:
        assert cache.load("mid", cache.video_ids).offsets[-1] > 0
    assert verify(path) == []
    assert ids(path) == (0, 0)
    FeatureCache.open_for_extraction(path, make_fingerprint()).close()
    first, second = ids(path)
    assert first == second != 0
    assert verify(path) == []


def test_an_id_that_reached_only_the_ledger_is_the_caches(tmp_path: Path) -> None:
    path = filled_cache(tmp_path / "c", 8).path
    without_id(path)
    with FeatureCache.open(path) as cache:
        given = cache.ledger.identify()
    FeatureCache.open_for_extraction(path, make_fingerprint()).close()
    assert ids(path) == (given, given)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("command", ["extract", "repair"])
def test_a_shard_that_no_ledger_lists_is_set_aside_and_not_deleted(tmp_path: Path, command: str, backend: str) -> None:
    """An old ledger without an id cannot be told from a foreign one."""
    path = filled_cache(tmp_path / "c", 20, backend=backend).path
    foreign = make_cache(tmp_path / "other", 2, backend=backend).path
    shards = files(path / "shards")
    without_id(path)
    without_id(foreign)
    shutil.copy(foreign / "ledger.sqlite", path / "ledger.sqlite")
    made = COMMANDS[command](path)
    if isinstance(made, FeatureCache):
        made.close()
    kept = {**files(path / "shards"), **files(path / "quarantine")}
    assert set(shards.values()) <= set(kept.values())


def test_without_a_ledger_damaged_shards_reach_the_quarantine(tmp_path: Path) -> None:
    path = filled_cache(tmp_path / "c", 9).path
    first = min((path / "shards").iterdir())
    content = bytearray(first.read_bytes())
    content[9000] ^= 1
    first.write_bytes(content)
    (path / "ledger.sqlite").unlink()
    assert [line for line in repair(path) if f"quarantine/{first.name}" in line]
    assert (path / "quarantine" / first.name).read_bytes() == content
