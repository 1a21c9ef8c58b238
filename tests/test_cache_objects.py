"""A cache in an object store behaves like any other: created, extended, read, continued, from any working copy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_cache import done, fill, make_dataset, make_fingerprint, make_shard, num_frames_of, video_features
from helpers_objects import LOCATION, memory_store  # noqa: F401

from cache.errors import CacheError
from cache.ledger import Outcome
from cache.objects.location import Location
from cache.schema import LEVELS
from cache.store import FeatureCache

pytestmark = pytest.mark.usefixtures("memory_store")


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
