"""verify and repair of a cache in an object store."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cache.common.errors import CacheError, DamageError
from cache.common.files import sealed_json, unsealed_json
from cache.remote.log import record_name
from cache.repair import repair
from cache.store import FeatureCache
from cache.verify import verify
from tests.cache.remote.test_objects import assert_complete, create
from tests.helpers.cache import done, fill, make_fingerprint, make_shard
from tests.helpers.objects import LOCATION, content, cut, flip, names, remove

obstore = pytest.importorskip("obstore", reason="needs the package obstore")

pytestmark = pytest.mark.usefixtures("memory_store")


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
    shutil.rmtree(filled / "shards" / row.name, ignore_errors=True)
    assert any("queued the 4 videos" in line for line in repair(filled, prune=True))
    with FeatureCache.open(filled.with_name("other")) as other:
        assert other.ledger.counts()["pending"] == 4
    assert not [name for name in names(memory_store, "shards") if row.digest in name]
    finish(filled)


def test_a_good_copy_mends_the_store(filled: Path, memory_store: Any) -> None:
    with FeatureCache.open(filled) as cache:
        row = cache.ledger.shards()[1]
        before = cache.ledger.counts()
    flip(memory_store, f"shards/{row.digest}.zarr/low/c/0/0/0")
    assert repair(filled, dry_run=True) == [f"queued 4 videos again ({verify(filled)[0].what})"]
    assert repair(filled) == [f"wrote {row.name} to the store again, from the copy here"]
    with FeatureCache.open(filled) as cache:
        assert cache.ledger.counts() == before
    assert verify(filled) == []


def test_records_of_another_cache_change_nothing(filled: Path, memory_store: Any) -> None:
    """The same settings, another dataset's records in the place of this cache's."""
    name = record_name(1)
    record = unsealed_json(content(memory_store, name), name)
    count = len(names(memory_store, "records"))
    nothing = {"kind": "retry", "outcomes": [], "shard": None, "files": {}, "statuses": ["failed"]}
    changes = {"position": count, "cache_id": 7, **nothing}
    obstore.put(memory_store, record_name(count), sealed_json(record | changes))
    stored = {name: content(memory_store, name) for name in names(memory_store, "")}
    assert any("another cache" in finding.what for finding in verify(filled))
    with pytest.raises(CacheError, match="another cache"):
        repair(filled)
    assert {name: content(memory_store, name) for name in names(memory_store, "")} == stored


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
        return staged.shard.digest


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
def test_orphans_that_are_not_whole_are_deleted_when_asked(tmp_path: Path, memory_store: Any, harm: Any) -> None:
    create(tmp_path / "cache").close()
    digest = orphan(tmp_path / "cache")
    harm(memory_store, f"shards/{digest}.zarr/high/c/0/0/0")
    obstore.put(memory_store, "shards/.zarr/x", b"")
    obstore.put(memory_store, "shards/stray", b"")
    before = names(memory_store, "shards")
    assert repair(tmp_path / "cache") == []
    assert len(repair(tmp_path / "cache", prune=True, dry_run=True)) == 3
    assert names(memory_store, "shards") == before
    assert len(repair(tmp_path / "cache", prune=True)) == 3
    assert names(memory_store, "shards") == []
    finish(tmp_path / "cache")


def test_the_claims_of_an_extraction_at_work_keep_its_shards(tmp_path: Path, memory_store: Any) -> None:
    create(tmp_path / "cache").close()
    digest = orphan(tmp_path / "cache")
    with FeatureCache.open(tmp_path / "cache") as cache:
        cache.ledger.claim("somebody", 4, 60)
    assert "an extraction is at work" in repair(tmp_path / "cache")[0]
    assert digest in names(memory_store, "shards")[0]
