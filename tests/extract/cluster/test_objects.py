"""Extraction on a Ray cluster into an object store: many machines without a folder that all of them see."""

import signal
from collections.abc import Iterator
from contextlib import suppress
from os import kill

import pytest

from cache.remote.client import Location
from cache.store import FeatureCache
from cache.verify import verify
from tests.helpers.extract import QUICK, assert_same, cache_of, everything, extract, make_videos
from tests.helpers.objects import FaultyProxy, S3Server, environment, faulty, use
from tests.helpers.ray import FourNodes, needs_ray, wait_for, workers

pytestmark = pytest.mark.slow
needs_ray()

VIDEOS = 40
NAME = "caches/by-ray"


@pytest.fixture(scope="module")
def proxy(s3_server: S3Server) -> Iterator[FaultyProxy]:
    """The server as seen by everybody: each tenth request fails."""
    with faulty(s3_server, fail_every=10) as faulty_proxy:
        yield faulty_proxy


@pytest.fixture(scope="module")
def cluster(proxy: FaultyProxy) -> Iterator[FourNodes]:
    """Nodes take credentials and the server's address from the environment in which Ray is started on them."""
    with pytest.MonkeyPatch.context() as patch:
        use(patch, proxy.endpoint)
        nodes = FourNodes()
        yield nodes
        nodes.close()


def test_four_nodes_fill_a_bucket_whatever_fails_or_is_killed(cluster, proxy, tmp_path):
    """An actor is killed in the middle; its task is done elsewhere, and what it had uploaded counts once."""
    videos = make_videos(tmp_path / "videos", VIDEOS)
    assert extract(tmp_path / "local", "--data", str(videos)).exit_code == 0
    work = tmp_path / "ray" / "work"
    options = ("--data", str(videos), "--dataset", "toy", "--device", "cpu", "--cache", f"s3://bucket/{NAME}", *QUICK)

    def committed() -> bool:
        with suppress(Exception), FeatureCache.open(work / "cache" / "toy") as cache:
            return cache.ledger.counts()["pending"] < VIDEOS
        return False

    with cluster.extracting(work, *options) as driver:
        wait_for(committed)
        kill(min(workers()), signal.SIGKILL)
        said, _ = driver.communicate(timeout=900)
    assert driver.returncode == 0, said
    assert proxy.failures > 5
    assert not any(secret in said for name, secret in environment(proxy.endpoint).items() if "KEY" in name)
    with (
        cache_of(tmp_path / "local") as ours,
        FeatureCache.attach(tmp_path / "elsewhere", Location("bucket", NAME)) as theirs,
    ):
        assert_same(everything(theirs), everything(ours))
        assert sum(row.num_videos for row in theirs.ledger.shards()) == VIDEOS, "a video was committed twice"
    assert [finding for finding in verify(tmp_path / "elsewhere") if not finding.harmless] == []
