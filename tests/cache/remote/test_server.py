"""A cache on a real S3 server (moto's, on loopback): extraction, faults, two drivers, kills, training."""

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cache.common.errors import CacheError
from cache.remote.client import Location, Objects, RetryPolicy
from cache.scores import read_scores
from cache.store import FeatureCache
from cache.verify import verify
from tests.cache.remote.test_objects import assert_complete, create
from tests.helpers.cache import done, fill, make_fingerprint, make_shard
from tests.helpers.extract import assert_same, everything, extract, make_videos
from tests.helpers.objects import SECRET, S3Server, faulty, python_environment, use


def location(name: str) -> Location:
    return Location("bucket", f"caches/{name}")


@pytest.mark.slow
def test_creating_and_replacing_are_conditional_and_errors_are_without_secrets(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, s3_server.endpoint)
    objects = Objects(location("plain"), RetryPolicy(seconds=0.3))
    assert [objects.create("a/1", b"x"), objects.create("a/1", b"y"), objects.create("a/1", b"x")] == [
        True,
        False,
        True,
    ]
    found = objects.read("a/1", 10)
    assert found is not None
    assert [objects.replace("a/1", b"z", tag) for tag in (found[1], found[1])] == [True, False]
    objects.write("a/2", b"")
    assert [name for name, _ in objects.names("a")] == ["a/1", "a/2"]
    assert [name for name, _ in objects.names("a", "a/1")] == ["a/2"]
    with faulty(s3_server, fail_every=1) as proxy:
        use(monkeypatch, proxy.endpoint)
        with pytest.raises(CacheError, match="check the server") as caught:
            Objects(location("plain"), RetryPolicy(seconds=0.3)).write("a/3", b"")
    assert SECRET not in repr(caught.value) + str(caught.value.__cause__)
    use(monkeypatch, s3_server.endpoint)
    with pytest.raises(CacheError, match="NoSuchBucket"):
        Objects(Location("elsewhere", "x")).write("a", b"")


@pytest.mark.slow
def test_a_server_that_fails_each_tenth_request_is_survived(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Refused, cut before, and cut after it was done: then the record is there, and the driver knows it as its own."""
    with faulty(s3_server, fail_every=10) as proxy:
        use(monkeypatch, proxy.endpoint)
        with create(tmp_path / "one", 80, location=location("tenth")) as one:
            fill(one)
        with FeatureCache.attach(tmp_path / "two", location("tenth")) as two:
            assert_complete(two, 80)
        assert verify(tmp_path / "two") == []
        assert proxy.failures > 50
        written = [path for method, path in proxy.requests if method == "PUT" and "/records/" in path]
    assert len(set(written)) == 20
    assert len(written) > 20, "no record's answer was lost; the test showed nothing"


@pytest.mark.slow
def test_a_server_that_stops_for_twenty_seconds_is_survived(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with faulty(s3_server) as proxy:
        use(monkeypatch, proxy.endpoint)
        with create(tmp_path / "one", 12, location=location("stops")) as one:
            claim = one.ledger.claim("test", 4, 600)
            ids = [video.id for video in claim.videos]
            started = time.monotonic()
            proxy.stop_for(20)
            one.commit(claim, make_shard(ids), done(ids), {})
            assert time.monotonic() - started > 15
            fill(one)
        proxy.stop_for(20)
        assert verify(tmp_path / "one") == []
        with FeatureCache.attach(tmp_path / "two", location("stops")) as two:
            assert_complete(two, 12)


DRIVER = """
import sys
from pathlib import Path
from tests.helpers.cache import done, make_fingerprint, make_shard
from cache.processes import this_process
from cache.shards.writer import ShardWriter, write_shard
from cache.store import FeatureCache
ShardWriter.write = lambda self, *what: write_shard(*what)
path, acknowledged = Path(sys.argv[1]), Path(sys.argv[2])
with FeatureCache.open_for_extraction(path, make_fingerprint()) as cache, acknowledged.open("a") as notes:
    print("ready", flush=True)
    while claim := cache.ledger.claim(this_process(), 2, 600):
        ids = [video.id for video in claim.videos]
        cache.commit(claim, make_shard(ids), done(ids), {})
        notes.write("".join(f"{video_id}\\n" for video_id in ids))
        notes.flush()
"""


def start_driver(path: Path, acknowledged: Path, endpoint: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(path), str(acknowledged)],
        env=python_environment(endpoint),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_killed_drivers_lose_nothing_and_do_nothing_twice(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """kill -9 at 20 random moments of committing; every fifth time the working copy is lost as well."""
    kills, chance = 20, random.Random(7)
    use(monkeypatch, s3_server.endpoint)
    where, acknowledged, videos = location("killed"), tmp_path / "acknowledged", 40 * kills
    create(tmp_path / "cache", videos, location=where).close()
    for number in range(kills):
        driver = start_driver(tmp_path / "cache", acknowledged, s3_server.endpoint)
        assert driver.stdout is not None
        assert driver.stdout.readline() == "ready\n", driver.stderr and driver.stderr.read()
        time.sleep(chance.uniform(0.0, 1.0))
        driver.kill()
        driver.communicate()
        if number % 5 == 4:
            shutil.rmtree(tmp_path / "cache")
            FeatureCache.attach(tmp_path / "cache", where).close()
        noted = acknowledged.read_text().splitlines() if acknowledged.exists() else []
        with FeatureCache.open(tmp_path / "cache") as cache:
            assert set(noted) <= set(cache.video_ids)
            assert cache.ledger.counts()["pending"] > 0, "all was done before the kill; the test showed nothing"
    with FeatureCache.open_for_extraction(tmp_path / "cache", make_fingerprint()) as cache:
        fill(cache, shard_videos=50)
        assert_complete(cache, videos)
        recorded = [outcome.video_id for record in cache.storage.log.since(0) for outcome in record.outcomes]
    assert sorted(recorded) == sorted(set(recorded)), "a video was committed twice"
    assert len(recorded) == videos
    assert len(noted) == len(set(noted))
    assert all(finding.harmless for finding in verify(tmp_path / "cache"))


@pytest.mark.slow
def test_two_drivers_as_processes_the_second_is_told(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, s3_server.endpoint)
    create(tmp_path / "one", 400, location=location("two")).close()
    FeatureCache.attach(tmp_path / "two", location("two")).close()
    first = start_driver(tmp_path / "one", tmp_path / "first", s3_server.endpoint)
    assert first.stdout is not None
    assert first.stdout.readline() == "ready\n"
    started = time.monotonic()
    second = start_driver(tmp_path / "two", tmp_path / "second", s3_server.endpoint)
    _, told = second.communicate(timeout=60)
    assert second.returncode == 1
    assert "has one driver at a time" in told
    assert SECRET not in told
    assert first.poll() is None, "the first was done before the second asked; the test showed nothing"
    assert time.monotonic() - started < 30
    first.kill()
    first.communicate()
    # A driver that died on this machine keeps nobody out, whatever its lease says.
    with FeatureCache.open_for_extraction(tmp_path / "two", make_fingerprint()) as two:
        fill(two, shard_videos=50)
        assert_complete(two, 400)


def train(work: Path) -> dict[str, list[Any]]:
    """The ids and softmax of the head's run and of its baseline's, by the names of their folders."""
    from train.cli import main

    fast = ["--hidden", "8", "--layers", "1", "--epochs", "2", "--level", "low"]
    result = CliRunner().invoke(main, ["--work", str(work), "--dataset", "toy", *fast], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    tables = {path.parent.name: read_scores(path) for path in (work / "runs").rglob("scores.npz")}
    assert len(tables) == 2
    return {name: [table.video_ids.tolist(), table.softmax.tolist()] for name, table in tables.items()}


@pytest.mark.slow
def test_extraction_into_it_and_training_from_it(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The command lines, with a server that fails each tenth request: what comes out is what a local cache gives."""
    data = make_videos(tmp_path / "data", count=8, frames=20)
    here, there, elsewhere = tmp_path / "here", tmp_path / "there", tmp_path / "elsewhere"
    assert extract(here, "--data", str(data)).exit_code == 0
    with faulty(s3_server, fail_every=10) as proxy:
        use(monkeypatch, proxy.endpoint)
        address = f"s3://bucket/caches/{tmp_path.name}"
        result = extract(there, "--data", str(data), "--cache", address)
        assert result.exit_code == 0, result.output
        assert f"into {address} (zarr)" in result.output
        assert "nothing to do" in extract(there, "--data", str(data), quick=False).output
        data.rename(tmp_path / "away")
        result = extract(elsewhere, "--cache", address, quick=False)
        assert "the videos are not at hand, and not needed" in result.output, result.output
        caches = [FeatureCache.open(work / "work" / "cache" / "toy") for work in (here, there, elsewhere)]
        for cache in caches[1:]:
            assert cache.storage.address
            assert_same(everything(cache), everything(caches[0]))
        scores = [train(work / "work") for work in (here, elsewhere)]
        assert scores[0] == scores[1]
        assert verify(caches[2].path) == []
        assert proxy.failures > 5
    result = extract(here, "--cache", address, quick=False)
    assert result.exit_code == 1
    assert "in this folder alone" in result.output
    for cache in caches:
        texts = [path.read_bytes() for path in cache.path.glob("*.json")]
        assert not [text for text in texts if SECRET.encode() in text or b"test-key-id" in text]
        cache.close()
