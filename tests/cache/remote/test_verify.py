"""verify and repair of a cache in an object store; and stores made to deceive."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cache.common.errors import CacheError, DamageError, MrrnError
from cache.common.files import sealed_json, unsealed_json
from cache.remote.log import record_name
from cache.repair import repair
from cache.shards.writer import hash_files
from cache.store import FeatureCache
from cache.verify import verify
from tests.cache.remote.test_objects import assert_complete, create
from tests.helpers.cache import done, fill, make_fingerprint, make_shard
from tests.helpers.objects import LOCATION, stores_in_memory

obstore = pytest.importorskip("obstore", reason="needs the package obstore")

pytestmark = pytest.mark.usefixtures("memory_store")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A working copy of a cache of three shards, and the objects in its store; made once."""
    folder = tmp_path_factory.mktemp("template") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        store = stores_in_memory(patch)
        with create(folder) as cache:
            fill(cache)
        return folder, {name: content(store, name) for name in names(store, "")}


@pytest.fixture
def filled(tmp_path: Path, memory_store: Any, template: tuple[Path, dict[str, bytes]]) -> Path:
    """The same for one test."""
    shutil.copytree(template[0], tmp_path / "cache")
    for name, bytes_ in template[1].items():
        obstore.put(memory_store, name, bytes_)
    return tmp_path / "cache"


def names(store: Any, prefix: str) -> list[str]:
    return sorted(row["path"] for page in obstore.list(store, prefix) for row in page)


def content(store: Any, name: str) -> bytes:
    return bytes(obstore.get(store, name).bytes())


def flip(store: Any, name: str) -> None:
    bytes_ = bytearray(content(store, name))
    bytes_[len(bytes_) // 2] ^= 1
    obstore.put(store, name, bytes(bytes_))


def cut(store: Any, name: str) -> None:
    obstore.put(store, name, content(store, name)[:-1])


def remove(store: Any, name: str) -> None:
    obstore.delete(store, name)


def finish(path: Path) -> None:
    with FeatureCache.open_for_extraction(path, make_fingerprint()) as cache:
        fill(cache)
    with FeatureCache.open(path) as cache:
        assert_complete(cache)
    assert verify(path) == []


@pytest.mark.parametrize(
    ("harm", "part"),
    [(flip, "low/c/0/0/0"), (cut, "zarr.json"), pytest.param(remove, "mid/c/0/0/0", marks=pytest.mark.slow)],
)
def test_damage_in_the_store_is_found_and_mended(
    filled: Path,
    memory_store: Any,
    harm: Callable[[Any, str], None],
    part: str,
) -> None:
    assert verify(filled) == []
    with FeatureCache.open(filled) as cache:
        row = cache.ledger.shards()[1]
    harm(memory_store, f"shards/{row.digest}.zarr/{part}")
    (finding,) = verify(filled)
    assert (row.name in finding.what, len(finding.videos), finding.harmless) == (True, 4, False)
    with FeatureCache.attach(filled.with_name("other"), LOCATION) as other, pytest.raises(DamageError, match="shard"):
        other.features(finding.videos[0], "low")
    assert any("queued the 4 videos" in line for line in repair(filled))
    with FeatureCache.open(filled.with_name("other")) as other:
        assert other.ledger.counts()["pending"] == 4
    assert not [name for name in names(memory_store, "shards") if row.digest in name]
    finish(filled)


def test_what_is_damaged_here_is_fetched_again(filled: Path) -> None:
    with FeatureCache.open(filled) as cache:
        row = cache.ledger.shards()[0]
        with cache.ledger.transaction() as connection:
            connection.execute("UPDATE videos SET reason = 'made up' WHERE number = 1")
    file = filled / "shards" / row.name / "mid" / "c" / "0" / "0" / "0"
    file.write_bytes(bytes(file.stat().st_size))
    assert ["other outcomes" in f.what or "copy of shard" in f.what for f in verify(filled)][:2] == [True, True]
    assert len(repair(filled)) >= 2
    finish(filled)


def test_a_working_copy_that_is_lost_or_without_a_ledger_comes_back(filled: Path) -> None:
    (filled / "ledger.sqlite").write_bytes(b"")
    assert verify(filled)
    repair(filled)
    finish(filled)


def orphan(path: Path) -> str:
    """Upload a shard without a record, as a driver that dies in the middle of a commit does."""
    with FeatureCache.open_for_extraction(path, make_fingerprint()) as cache:
        claim = cache.ledger.claim("test", 4, 60)
        ids = [video.id for video in claim.videos]
        staged = cache.stage(claim.token, make_shard(ids), done(ids), {})
        cache.ledger.release(claim)
        return staged.written.digest


def test_orphans_are_named_and_adopted_where_they_are_whole(tmp_path: Path, memory_store: Any) -> None:
    create(tmp_path / "cache").close()
    digest = orphan(tmp_path / "cache")
    (finding,) = verify(tmp_path / "cache")
    assert digest in finding.what
    assert finding.harmless
    assert repair(tmp_path / "cache") == [f"adopted shards/{digest}.zarr, which was complete but not yet recorded"]
    with FeatureCache.attach(tmp_path / "two", LOCATION) as two:
        assert len(two.video_ids) == 4
    finish(tmp_path / "cache")


@pytest.mark.parametrize("harm", [flip, remove])
def test_orphans_that_are_not_whole_are_removed(tmp_path: Path, memory_store: Any, harm: Any) -> None:
    create(tmp_path / "cache").close()
    digest = orphan(tmp_path / "cache")
    harm(memory_store, f"shards/{digest}.zarr/high/c/0/0/0")
    obstore.put(memory_store, "shards/.zarr/x", b"")
    obstore.put(memory_store, "shards/stray", b"")
    assert len(repair(tmp_path / "cache")) == 3
    assert names(memory_store, "shards") == []
    finish(tmp_path / "cache")


def test_the_claims_of_an_extraction_at_work_keep_its_shards(tmp_path: Path, memory_store: Any) -> None:
    create(tmp_path / "cache").close()
    digest = orphan(tmp_path / "cache")
    with FeatureCache.open(tmp_path / "cache") as cache:
        cache.ledger.claim("somebody", 4, 60)
    assert "an extraction is at work" in repair(tmp_path / "cache")[0]
    assert digest in names(memory_store, "shards")[0]


# -- stores made to deceive -------------------------------------------------------------------------------------------


def record(change: Callable[[dict[str, Any]], object]) -> Callable[[Any], str]:
    """Change what the second record says, with a seal that fits."""

    def craft(store: Any) -> str:
        name = record_name(1)
        value = unsealed_json(content(store, name), name)
        change(value)
        obstore.put(store, name, sealed_json(value))
        return name

    return craft


def renamed(value: dict[str, Any], name: str) -> None:
    value["files"][name] = value["files"].pop("low/c/0/0/0")


def absurd(value: dict[str, Any]) -> None:
    value["files"]["low/c/0/0/0"] += 10**15
    value["shard"]["num_bytes"] += 10**15


def larger(value: dict[str, Any]) -> None:
    value["files"]["low/c/0/0/0"] += 1
    value["shard"]["num_bytes"] += 1


def cut_record(store: Any) -> str:
    cut(store, record_name(1))
    return record_name(1)


def flip_record(store: Any) -> str:
    flip(store, record_name(1))
    return record_name(1)


def lose_record(store: Any) -> str:
    remove(store, record_name(1))
    return record_name(1)


def nested(store: Any) -> str:
    obstore.put(store, record_name(1), b"[" * 100_000)
    return record_name(1)


RECORDS = {
    "leaves the folder": record(lambda value: renamed(value, "../../evil")),
    "absolute path": record(lambda value: renamed(value, "/tmp/evil")),
    "backslash": record(lambda value: renamed(value, "..\\evil")),
    "address": record(lambda value: renamed(value, "https://evil/x")),
    "empty part": record(lambda value: renamed(value, "a//b")),
    "no name among names": record(lambda value: renamed(value, "")),
    "too many files": record(lambda value: value["files"].update({f"x{i}": 0 for i in range(5000)})),
    "negative size": record(lambda value: value["files"].update({"a": -1, "b": 1})),
    "size as text": record(lambda value: value["files"].update({"a": "1"})),
    "sizes do not add up": record(lambda value: value["files"].update({"a": 1})),
    "shard name": record(lambda value: value["shard"].update(name="../../evil.zarr")),
    "shard hash": record(lambda value: value["shard"].update(digest="../" * 8)),
    "shard number": record(lambda value: value["shard"].update(number=0)),
    "shard twice": record(lambda value: value["shard"].update(name="000000-0123456789abcdef.zarr")),
    "video twice": record(lambda value: value["outcomes"].append(value["outcomes"][0])),
    "video id": record(lambda value: value["outcomes"][0].update(video_id="../evil")),
    "video unknown": record(lambda value: value["outcomes"][0].update(video_id="somebody/else")),
    "count as text": record(lambda value: value["outcomes"][0].update(num_frames="1; DROP TABLE videos")),
    "status": record(lambda value: value["outcomes"][0].update(status="great")),
    "pending": record(lambda value: value["outcomes"][0].update(status="pending")),
    "position": record(lambda value: value.update(position=7)),
    "kind": record(lambda value: value.update(kind="run")),
    "format": record(lambda value: value.update(format=2)),
    "more fields": record(lambda value: value.update(__class__="x")),
    "other features": record(lambda value: value.update(fingerprint="0" * 32)),
    "dataset path": record(lambda value: value.update(kind="dataset", dataset="../../etc/passwd")),
    "dataset missing": record(lambda value: value.update(kind="dataset", dataset=f"datasets/{'0' * 32}.json")),
    "cut short": cut_record,
    "flipped": flip_record,
    "missing": lose_record,
    "nested": nested,
}


@pytest.mark.parametrize("case", RECORDS)
def test_records_that_deceive_are_refused_by_name(
    filled: Path,
    memory_store: Any,
    case: str,
) -> None:
    before = sorted(filled.parent.iterdir())
    name = RECORDS[case](memory_store)
    with (
        FeatureCache.attach(filled.with_name("other"), LOCATION) as other,
        pytest.raises(MrrnError) as caught,
    ):
        _ = other.ledger
    told = str(caught.value)
    assert name in told or "record 1" in told or "somebody/else" in told or "datasets/" in told
    assert sorted(filled.parent.iterdir()) == sorted([*before, filled.with_name("other")])
    assert any(not finding.harmless for finding in verify(filled.with_name("other")))


@pytest.mark.parametrize("case", ["larger", "absurd"])
def test_sizes_that_deceive_are_refused_before_anything_is_written(
    filled: Path,
    memory_store: Any,
    case: str,
) -> None:
    record({"larger": larger, "absurd": absurd}[case])(memory_store)
    with FeatureCache.attach(filled.with_name("other"), LOCATION) as other:
        video_id = next(place.video_id for place in other.places if place.shard == 1)
        with pytest.raises(CacheError, match=r"were written|make room"):
            other.features(video_id, "low")
        assert list((other.path / "shards").iterdir()) == []


def test_shards_that_deceive_are_refused_as_local_ones_are(filled: Path, memory_store: Any) -> None:
    """With the right hashes in the record: an array that declares terabytes."""
    with FeatureCache.open(filled) as cache:
        row = cache.ledger.shards()[1]
        shard, video_id = filled / "shards" / row.name, next(p.video_id for p in cache.places if p.shard == 1)
    metadata = json.loads((shard / "low" / "zarr.json").read_bytes())
    metadata["shape"][1] = 10**12
    (shard / "low" / "zarr.json").write_bytes(json.dumps(metadata).encode())
    written = hash_files(shard)
    for file in shard.rglob("*"):
        if file.is_file():
            obstore.put(memory_store, f"shards/{written.digest}.zarr/{file.relative_to(shard)}", file)

    def change(value: dict[str, Any]) -> None:
        value["files"]["low/zarr.json"] += written.num_bytes - row.num_bytes
        value["shard"].update(
            digest=written.digest, num_bytes=written.num_bytes, name=f"000001-{written.digest[:16]}.zarr"
        )

    record(change)(memory_store)
    with FeatureCache.attach(filled.with_name("other"), LOCATION) as other:
        with pytest.raises(DamageError, match="shape"):
            other.features(video_id, "low")
        (finding,) = [finding for finding in verify(other.path) if not finding.harmless]
        assert "000001-" in finding.what
