"""A cache in an object store behaves like any other: created, extended, read, continued, from any working copy."""

import contextlib
import json
import os
import pickle
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from cache.cli import main
from cache.common.errors import CacheError
from cache.fingerprint import LEVELS
from cache.leases import break_leases
from cache.ledger import FileState, Outcome
from cache.remote.client import Location, Objects
from cache.remote.lease import NAME, DriverLease, LeaseRecord
from cache.repair import repair
from cache.store import FeatureCache
from cache.verify import verify
from tests.helpers.cache import done, fill, make_dataset, make_fingerprint, make_shard, num_frames_of, video_features
from tests.helpers.objects import LOCATION

pytestmark = pytest.mark.usefixtures("memory_store")

FILES_OF_A_SHARD = 15
"""Zarr, three levels, one view: the group, and two files for each of seven arrays."""


def create(path: Path, videos: int = 10, *, backend: Any = "zarr", location: Location = LOCATION) -> FeatureCache:
    return FeatureCache.create(
        path,
        dataset=make_dataset(videos),
        fingerprint=make_fingerprint(),
        settings={"data": "nowhere"},
        backend=backend,
        location=location,
    )


def assert_complete(cache: FeatureCache, videos: int = 10) -> None:
    cache.require_finished()
    assert cache.video_ids == tuple(video.id for video in make_dataset(videos).videos)
    for video_id in cache.video_ids:
        expected = video_features(video_id, num_frames_of(video_id))
        for level in LEVELS:
            assert np.array_equal(cache.features(video_id, level), expected[level][0])


def sent(value: Any) -> Any:
    """As it arrives in another process."""
    return pickle.loads(pickle.dumps(value))  # noqa: S301 (what this process has just written)


def test_a_video_whose_file_changed_is_pending_in_every_working_copy(tmp_path: Path) -> None:
    file = FileState(size=5, modified_ns=7, hash="0" * 32)
    with create(tmp_path / "one", 2) as one:
        claim = one.ledger.claim("test", 2, 60.0)
        assert claim is not None
        ids = [video.id for video in claim.videos]
        outcomes = [replace(outcome, file=file) for outcome in done(ids)]
        one.commit(claim, make_shard(ids), outcomes, one.fingerprint.environment)
        assert one.ledger.files() == dict.fromkeys(ids, file)
        assert one.requeue(videos=ids[:1]) == 1
    with FeatureCache.attach(tmp_path / "two", LOCATION) as two:
        assert two.video_ids == (ids[1],)
        assert two.ledger.files() == {ids[1]: file}
        assert verify(two.path) == []


@pytest.mark.parametrize("backend", ["zarr", "h5"])
def test_what_one_working_copy_commits_another_reads(tmp_path: Path, backend: str) -> None:
    with create(tmp_path / "one", backend=backend) as one:
        fill(one)
        assert_complete(one)
    with FeatureCache.attach(tmp_path / "two", LOCATION) as two:
        assert (two.backend, two.settings, two.dataset) == (backend, {"data": "nowhere"}, make_dataset(10))
        assert list(two.ledger.outcomes()) == list(one.ledger.outcomes())
        assert not any((tmp_path / "two" / "shards").iterdir())
        assert_complete(two)
        assert {p.name for p in (tmp_path / "two/shards").iterdir()} == {row.name for row in two.ledger.shards()}


def test_a_second_driver_is_told_who_is_there(tmp_path: Path) -> None:
    with create(tmp_path / "one") as one:
        claim = one.ledger.claim("test", 4, 60)
        ids = [video.id for video in claim.videos]
        one.commit(claim, make_shard(ids), done(ids), {})
        with pytest.raises(CacheError, match="has one driver at a time"):
            FeatureCache.attach(tmp_path / "two", LOCATION).open_for_extraction(tmp_path / "two", make_fingerprint())
        fill(one)  # is not disturbed, and closes the cache
    with FeatureCache.open_for_extraction(tmp_path / "two", make_fingerprint()) as two:
        assert_complete(two)
    assert list((tmp_path / "one").glob("shards/.*")) == []


def say(until: float) -> None:
    """Make a process of another machine the driver, until then."""
    objects = Objects(LOCATION)
    theirs = LeaseRecord(driver="theirs", owner="elsewhere-" + "0" * 16 + "-77-5", until=until)
    content = json.dumps(asdict(theirs)).encode()
    found = objects.read(NAME, 4096)
    assert objects.create(NAME, content) if found is None else objects.replace(NAME, content, found[1])


@pytest.mark.parametrize("seconds", [-600.0, 3e8], ids=["ended", "ten years ahead"])
def test_a_lease_that_a_set_clock_may_have_ended_is_watched_first(
    monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    until = time.time() + seconds
    say(until)
    mine = DriverLease(Objects(LOCATION), "mine")
    monkeypatch.setattr(time, "sleep", lambda _: say(until + 30))
    with pytest.raises(CacheError, match="has one driver at a time"):
        mine.hold()
    monkeypatch.setattr(time, "sleep", lambda _: None)
    mine.hold()
    mine.release(for_all=True)
    assert mine.held_by() is None


def test_the_lease_of_a_driver_elsewhere_can_be_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with create(tmp_path / "one") as one:
        one.storage.acquire()
        with pytest.raises(CacheError, match="is alive and works on"):
            break_leases(one)
    until = time.time() + 100
    say(until)
    monkeypatch.setattr(time, "sleep", lambda _: say(until + 30))
    with pytest.raises(CacheError, match="process 77 on elsewhere still works on"):
        break_leases(one)
    (line,) = break_leases(one, 0.0)
    assert "process 77 on elsewhere, not of this machine: the right to extend the cache" in line
    assert one.storage.leases() == []
    one.storage.acquire()  # at once, although that lease had not ended
    one.close()


def test_a_driver_that_lost_the_cache_unawares_is_told_by_its_next_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease does not help two that both believe to have it, as after a long pause; the log does."""
    monkeypatch.setattr(DriverLease, "hold", lambda self: None)
    with create(tmp_path / "one") as one, FeatureCache.attach(tmp_path / "two", LOCATION) as two:
        claims = [cache.ledger.claim("test", 4, 60) for cache in (one, two)]
        ids = [video.id for video in claims[0].videos]
        assert ids == [video.id for video in claims[1].videos]
        one.commit(claims[0], make_shard(ids), done(ids), {})
        with pytest.raises(CacheError, match=r"another driver .* wrote record 0 .* has lost the cache"):
            two.commit(claims[1], make_shard(ids), done(ids), {})
        assert two.ledger.counts()["pending"] == 10
    with FeatureCache.open(tmp_path / "two") as two:
        assert two.video_ids == tuple(sorted(ids))
        fill(two)
        assert_complete(two)


def test_outcomes_retries_and_new_videos_are_in_the_log(tmp_path: Path) -> None:
    with create(tmp_path / "one", 4) as one:
        claim = one.ledger.claim("test", 4, 60)
        ids = [video.id for video in claim.videos]
        failed = Outcome(video_id=ids[3], status="failed", reason="not a video")
        doubtful = Outcome(video_id=ids[0], status="suspect", reason="short", num_frames=num_frames_of(ids[0]))
        one.commit(claim, make_shard(ids[:3]), [doubtful, *done(ids[1:3]), failed], {})
        one.replace_dataset(make_dataset(6))
        assert one.requeue(["failed"]) == 1
        assert one.ledger.counts() == {"pending": 3, "done": 2, "suspect": 1, "failed": 0}
    with FeatureCache.attach(tmp_path / "two", LOCATION) as two:
        assert two.dataset == make_dataset(6)
        assert list(two.ledger.outcomes()) == list(one.ledger.outcomes())
        fill(two)
    assert verify(tmp_path / "two") == verify(tmp_path / "one") == []


def test_videos_that_left_the_dataset_are_out_in_every_working_copy_and_come_back(tmp_path: Path) -> None:
    with create(tmp_path / "one", 6) as one:
        fill(one)
        one.replace_dataset(make_dataset(4))
        assert len(one.video_ids) == sum(one.ledger.counts().values()) == 4
    with FeatureCache.attach(tmp_path / "two", LOCATION) as two:
        assert two.video_ids == one.video_ids
    assert verify(tmp_path / "two") == verify(tmp_path / "one") == []
    (tmp_path / "one" / "ledger.sqlite").unlink()
    assert repair(tmp_path / "one")
    with FeatureCache.open(tmp_path / "one") as one:
        assert one.replace_dataset(make_dataset(6)) == 2
        assert_complete(one, 6)


def test_a_working_copy_is_bounded_and_refilled(tmp_path: Path) -> None:
    with create(tmp_path / "one") as one:
        fill(one, shard_videos=2)
        rows = one.ledger.shards()
    limit = max(row.num_bytes for row in rows) * 2
    with FeatureCache.attach(tmp_path / "two", LOCATION, limit) as two:
        for _ in range(2):
            assert_complete(two)
            kept = [row for row in rows if (tmp_path / "two" / "shards" / row.name).exists()]
            assert 0 < sum(row.num_bytes for row in kept) <= limit
            two.close()
            two.__dict__.pop("pool")
    assert len(list((tmp_path / "two" / "shards").iterdir())) == len(kept)


def test_a_reader_fetches_each_shard_once(tmp_path: Path) -> None:
    with create(tmp_path / "one") as one:
        fill(one)
        rows = one.ledger.shards()
    with FeatureCache.attach(tmp_path / "two", LOCATION) as two:
        assert_complete(two)
        gets = two.storage.objects.requests["get"]
        assert gets == len(rows) * (FILES_OF_A_SHARD + 2)  # the record, when the log is read and with the shard
        assert_complete(two)
        assert two.storage.objects.requests["get"] == gets


def test_what_a_commit_costs(tmp_path: Path) -> None:
    """docs/formats.md states these numbers."""
    with create(tmp_path / "one") as one:
        claims = [one.ledger.claim("test", 2, 60) for _ in range(3)]
        one.storage.lease.hold()
        before = dict(one.storage.objects.requests)
        for claim in claims:
            ids = [video.id for video in claim.videos]
            one.commit(claim, make_shard(ids), done(ids), {})
        spent = {kind: count - before.get(kind, 0) for kind, count in one.storage.objects.requests.items()}
        assert spent == {"put": 3 * (FILES_OF_A_SHARD + 1), "get": 0, "list": 0}


def test_a_pickled_cache_writes_from_a_machine_without_the_folder(tmp_path: Path) -> None:
    """As tasks of an engine do: the shard goes to the store there, the record comes from the driver."""
    with create(tmp_path / "one") as one:
        claim = one.ledger.claim("test", 10, 60)
        ids = [video.id for video in claim.videos]
        (tmp_path / "one").rename(tmp_path / "elsewhere")
        with sent(one) as there:
            assert there.path != one.path
            staged = there.stage(claim.token, make_shard(ids), done(ids), {})
            assert list((there.path / "shards").iterdir()) == []
        (tmp_path / "elsewhere").rename(tmp_path / "one")
        one.commit_staged(claim, sent(staged))
        assert_complete(one)


def test_a_cache_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    create(tmp_path / "one").close()
    with pytest.raises(CacheError, match="holds a cache already"):
        create(tmp_path / "two")
    with pytest.raises(CacheError, match="there is no cache at s3://bucket/none"):
        FeatureCache.attach(tmp_path / "two", Location("bucket", "none"))


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("s3://bucket", "expected s3://bucket/prefix"),
        ("s3://bucket/a/../b", "expected s3://bucket/prefix"),
        ("s3://bucket/.hidden", "expected s3://bucket/prefix"),
        ("s3://Bucket/x", "expected s3://bucket/prefix"),
        ("gs://bucket/x", "expected s3://bucket/prefix"),
        ("work/cache", "expected s3://bucket/prefix"),
        ("s3://key:geheim@bucket/x", "credentials in the environment"),
        ("s3://bucket/x?X-Amz-Signature=geheim", "expected s3://bucket/prefix"),
    ],
)
def test_odd_addresses_are_refused_and_secrets_not_repeated(address: str, complaint: str) -> None:
    with pytest.raises(CacheError, match=complaint) as caught:
        Location.parse(address)
    assert "geheim" not in str(caught.value)


def test_the_command_line_attaches_verifies_and_tells_where_it_is(tmp_path: Path) -> None:
    with create(tmp_path / "one") as one:
        fill(one)

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(main, [*arguments, "--work", str(tmp_path / "work")], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    assert f"a working copy of {LOCATION} (0 pending, 10 done" in run("attach", str(LOCATION))
    assert f"a working copy of {LOCATION}" in run("info")
    assert "everything is as it was written" in run("verify", "--dataset", "toy")
    assert "there was nothing to repair" in run("repair")


def test_after_a_fork_what_is_here_is_read_and_the_store_is_not_waited_for(tmp_path: Path) -> None:
    with create(tmp_path / "one") as one:
        fill(one)
        assert_complete(one)
        kept, gone = one.ledger.shards()[:2]
        shutil.rmtree(tmp_path / "one" / "shards" / gone.name)
        one.__dict__.pop("pool")
        video = {place.shard: place.video_id for place in one.places}
        pid = os.fork()
        if pid == 0:
            code = 1
            with contextlib.suppress(BaseException):
                one.features(video[kept.number], "low")
                try:
                    one.features(video[gone.number], "low")
                except CacheError as error:
                    code = 0 if "fork" in str(error) else 2
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
