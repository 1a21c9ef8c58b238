"""`verify` finds seeded damage of many kinds, names what it hurts, and raises no false alarm; `repair` mends it."""

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from cache.common.errors import MrrnError
from cache.common.files import read_sealed_json, write_sealed_json
from cache.ledger import Outcome
from cache.repair import repair
from cache.shards import BACKENDS
from cache.store import FeatureCache
from cache.verify import verify
from tests.helpers.cache import done, fill, filled_cache, make_cache, make_fingerprint, make_shard, num_frames_of


def shard_path(cache: Path, position: int = 0) -> Path:
    return sorted(path for path in (cache / "shards").iterdir() if path.name[0] != ".")[position]


def largest_file(shard: Path) -> Path:
    return (
        shard if shard.is_file() else max((f for f in shard.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    )


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 0x10
    file.write_bytes(content)


def gone(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def sql(cache: Path, statement: str) -> None:
    connection = sqlite3.connect(cache / "ledger.sqlite")
    with connection:
        connection.execute(statement)
    connection.close()


def edit_json(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def reseal(file: Path, change: Callable[[dict], None]) -> None:
    value = read_sealed_json(file)
    change(value)
    write_sealed_json(file, value)


def swap_shards(cache: Path) -> None:
    first, second = shard_path(cache, 0), shard_path(cache, 1)
    aside = first.with_name("aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


def copy_over(cache: Path) -> None:
    first, second = shard_path(cache, 0), shard_path(cache, 1)
    gone(first)
    shutil.copytree(second, first) if second.is_dir() else shutil.copy(second, first)


def lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"x")


def replace_by_link(path: Path) -> None:
    aside = path.parent.parent / f"moved-{path.name}"
    path.rename(aside)
    path.symlink_to(aside)


FIRST = "WHERE shard = 0 AND position = 0"

DAMAGE: dict[str, Callable[[Path], object]] = {
    "a bit flipped in the features": lambda c: flip(largest_file(shard_path(c)), 9000),
    "a bit flipped at the start of a shard": lambda c: flip(largest_file(shard_path(c)), 9),
    "a bit flipped at the end of a shard": lambda c: flip(largest_file(shard_path(c)), -1),
    "a shard cut short": lambda c: os.truncate(largest_file(shard_path(c)), 5000),
    "a shard cut short by a byte": lambda c: os.truncate(
        largest_file(shard_path(c)), largest_file(shard_path(c)).stat().st_size - 1
    ),
    "a shard with bytes behind its end": lambda c: lengthen(largest_file(shard_path(c))),
    "an empty shard": lambda c: os.truncate(largest_file(shard_path(c)), 0),
    "a missing shard": lambda c: gone(shard_path(c)),
    "zeros in a shard": lambda c: (
        os.truncate(largest_file(shard_path(c)), 4096) or os.truncate(largest_file(shard_path(c)), 40_000)
    ),
    "two shards swapped": swap_shards,
    "a shard replaced by another": copy_over,
    "a shard renamed": lambda c: shard_path(c).rename(c / "shards" / ("000009" + shard_path(c).name[6:])),
    "a link in place of a shard": lambda c: replace_by_link(shard_path(c)),
    "a shard of other settings": lambda c: reseal(
        c / "cache.json", lambda v: v["fingerprint"]["identity"].update(backbone="resnet18")
    ),
    "cache.json edited": lambda c: edit_json(c / "cache.json", "resnet34", "resnet18"),
    "cache.json cut short": lambda c: os.truncate(c / "cache.json", 100),
    "cache.json missing": lambda c: (c / "cache.json").unlink(),
    "cache.json of another format": lambda c: reseal(c / "cache.json", lambda v: v.update(format=99)),
    "a label changed in dataset.json": lambda c: edit_json(c / "dataset.json", '"label": 0', '"label": 1'),
    "dataset.json missing": lambda c: (c / "dataset.json").unlink(),
    "a video of dataset.json not in the ledger": lambda c: sql(c, "DELETE FROM videos WHERE number = 9"),
    "the ledger missing": lambda c: (c / "ledger.sqlite").unlink(),
    "the ledger overwritten": lambda c: (c / "ledger.sqlite").write_bytes(b"no database" * 500),
    "the ledger cut short": lambda c: os.truncate(c / "ledger.sqlite", 8192),
    "a foreign trigger in the ledger": lambda c: sql(
        c, "CREATE TRIGGER t AFTER UPDATE ON videos BEGIN DELETE FROM videos; END"
    ),
    "a foreign table in the ledger": lambda c: sql(c, "CREATE TABLE extra (x)"),
    "a wrong place": lambda c: sql(c, f"UPDATE videos SET position = 7 {FIRST}"),
    "a wrong shard": lambda c: sql(c, f"UPDATE videos SET shard = 1 {FIRST}"),
    "a shard that is not listed": lambda c: sql(c, f"UPDATE videos SET shard = 55 {FIRST}"),
    "a shard struck from the list": lambda c: sql(c, "DELETE FROM shards WHERE number = 0"),
    "two videos in one place": lambda c: sql(c, f"UPDATE videos SET position = 1 {FIRST}"),
    "a wrong number of frames": lambda c: sql(c, f"UPDATE videos SET num_frames = num_frames + 1 {FIRST}"),
    "no place": lambda c: sql(c, f"UPDATE videos SET shard = NULL, position = NULL {FIRST}"),
    "an unknown status": lambda c: sql(c, f"UPDATE videos SET status = 'fine' {FIRST}"),
    "done that was suspect": lambda c: sql(c, f"UPDATE videos SET status = 'suspect' {FIRST}"),
    "pending with features": lambda c: sql(c, f"UPDATE videos SET status = 'pending' {FIRST}"),
    "text where a number belongs": lambda c: sql(c, f"UPDATE videos SET num_frames = 'many' {FIRST}"),
    "a claim nobody has": lambda c: sql(
        c,
        "UPDATE videos SET claim = 4, status = 'pending', shard = NULL, position = NULL, num_frames = 0"
        " WHERE shard = 0 AND position = 0",
    ),
    "a wrong path": lambda c: sql(c, f"UPDATE videos SET path = 'x.avi' {FIRST}"),
    "a wrong id": lambda c: sql(c, f"UPDATE videos SET id = 'c0/x' {FIRST}"),
    "a wrong hash": lambda c: sql(c, f"UPDATE shards SET digest = '{'01' * 16}' WHERE number = 0"),
    "a wrong size": lambda c: sql(c, "UPDATE shards SET num_bytes = 7 WHERE number = 0"),
    "a wrong content": lambda c: sql(c, f"UPDATE shards SET content = '{'01' * 16}' WHERE number = 0"),
    "wrong surroundings": lambda c: sql(c, "UPDATE shards SET environment = '{}' WHERE number = 0"),
    "a shard name that leads out of the folder": lambda c: sql(c, "UPDATE shards SET name = '../x' WHERE number = 0"),
}

BEYOND_REPAIR = ("cache.json", "dataset.json", "other settings")
"""Damage after which nobody can know what the cache was."""


def harm(path: Path) -> list[str]:
    """What verify says that is not merely left over."""
    return [finding.what for finding in verify(path) if not finding.harmless]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", DAMAGE)
def test_every_kind_of_damage_is_found_and_nothing_is_written(tmp_path: Path, kind: str, backend: str) -> None:
    path = filled_cache(tmp_path / "c", 9, backend=backend).path
    DAMAGE[kind](path)
    before = {file: file.lstat().st_mtime_ns for file in path.rglob("*")}
    assert harm(path), kind
    assert {file: file.lstat().st_mtime_ns for file in before} == before


REPAIRABLE = [kind for kind in DAMAGE if not any(words in kind for words in BEYOND_REPAIR)]


@pytest.mark.parametrize("kind", REPAIRABLE)
def test_what_was_repaired_is_sound(tmp_path: Path, kind: str) -> None:
    path = filled_cache(tmp_path / "c", 9).path
    DAMAGE[kind](path)
    repair(path)
    assert harm(path) == []
    assert repair(path) == []


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", REPAIRABLE)
def test_a_repaired_cache_is_completed_by_extracting_again(tmp_path: Path, kind: str, backend: str) -> None:
    path = filled_cache(tmp_path / "c", 9, backend=backend).path
    DAMAGE[kind](path)
    repair(path)
    with FeatureCache.open(path) as cache:
        fill(cache)
        cache.require_finished()
        wanted = {video.id for video in cache.dataset.videos}
        assert wanted <= set(cache.video_ids)
        assert cache.load("mid", sorted(wanted)).offsets[-1] == sum(map(num_frames_of, wanted))
    assert harm(path) == []


@pytest.mark.parametrize("kind", ["cache.json edited", "dataset.json missing"])
def test_repair_touches_nothing_where_it_cannot_know(tmp_path: Path, kind: str) -> None:
    path = filled_cache(tmp_path / "c", 9).path
    DAMAGE[kind](path)
    before = sorted(path.rglob("*"))
    with pytest.raises(MrrnError, match=r"(cache|dataset)\.json"):
        repair(path)
    assert sorted(path.rglob("*")) == before


def test_at_least_thirty_kinds_are_tried() -> None:
    assert len(DAMAGE) >= 30


def test_damage_names_the_videos_it_hurts(tmp_path: Path) -> None:
    cache = filled_cache(tmp_path / "c", 9)
    flip(shard_path(cache.path, 1), 9000)
    (finding,) = verify(cache.path)
    assert finding.videos == cache.video_ids[4:8]
    assert shard_path(cache.path, 1).name in finding.what


def test_a_missing_ledger_is_made_anew_from_the_shards(tmp_path: Path) -> None:
    with make_cache(tmp_path / "c", 6) as cache:
        claim = cache.ledger.claim("a", 6, 60)
        assert claim is not None
        ids = [video.id for video in claim.videos]
        outcomes = [*done(ids[:4]), Outcome(video_id=ids[4], status="failed", reason="empty")]
        cache.commit(claim, make_shard(ids[:4]), outcomes, make_fingerprint(torch="9").environment)
        before = list(cache.ledger.outcomes("done"))
    (tmp_path / "c/ledger.sqlite").unlink()
    repair(tmp_path / "c")
    cache = FeatureCache.open(tmp_path / "c")
    assert list(cache.ledger.outcomes("done")) == before
    assert cache.ledger.counts() == {"pending": 2, "done": 4, "suspect": 0, "failed": 0}
    assert json.loads(cache.ledger.shards()[0].environment)["torch"] == "9"


def make_clean(path: Path, number: int) -> FeatureCache:
    """Caches in all states that are nobody's fault: empty, half done, finished, requeued, interrupted, drifted."""
    backend, kind = BACKENDS[number % 7 == 1], number % 6
    if kind == 0:
        return make_cache(path, 3, backend=backend)
    cache = filled_cache(path, 9, backend=backend, views=("center", "random0")[: 1 + number // 50])
    if kind == 2:
        cache.requeue(["done"])
    if kind == 3:
        with cache.ledger.transaction() as connection:
            cache.ledger.forget_video(connection, cache.video_ids[number % 9])
        cache.ledger.claim("somebody", 1, 60)
    if kind == 4:
        (cache.path / "shards/.tmp-7-8-9").write_bytes(b"half")
    if kind == 5:
        cache.replace_dataset(make_cache(path.with_name(f"{path.name}-more"), 12).dataset)
    cache.close()
    return cache


@pytest.mark.parametrize(
    "count", [pytest.param(6, id="6 caches"), pytest.param(100, id="100 caches", marks=pytest.mark.slow)]
)
def test_no_false_alarm_on_clean_caches(tmp_path: Path, count: int) -> None:
    for number in range(count):
        cache = make_clean(tmp_path / str(number), number)
        assert harm(cache.path) == []
