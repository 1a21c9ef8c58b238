"""Object stores made to deceive: records, sizes and shards, with seals and hashes that fit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cache.common.errors import CacheError, DamageError, MrrnError
from cache.common.files import sealed_json, unsealed_json
from cache.remote.log import record_name
from cache.shards.writer import hash_files
from cache.store import FeatureCache
from cache.verify import verify
from tests.helpers.objects import LOCATION, content, cut, flip, remove

obstore = pytest.importorskip("obstore", reason="needs the package obstore")

pytestmark = pytest.mark.usefixtures("memory_store")


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
