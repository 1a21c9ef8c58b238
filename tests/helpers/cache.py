"""Caches and shards with made-up features, for tests."""

import atexit
import functools
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cache.dataset import Dataset, Half
from cache.fingerprint import CHANNELS, LEVELS, Fingerprint, Level
from cache.ledger import Outcome
from cache.shards.protocol import ShardData
from cache.store import FeatureCache

IDENTITY: dict[str, Any] = {
    "weights_sha256": "0" * 64,
    "weights": "random:0",
    "backbone": "resnet34",
    "levels": ["low", "mid", "high"],
    "transform": "resize 256, crop 224",
    "views": ["center"],
    "views_seed": 0,
    "dtype": "float16",
    "format_version": 1,
    "max_frames": None,
    "fps": None,
}

ENVIRONMENT: dict[str, Any] = {
    "decoder": "decord",
    "decoder_version": "3.4.0",
    "torch": "2.15.0",
    "torchvision": "0.29.2",
    "device": "cpu",
    "precision": "fp32",
    "batch_frames": 64,
}


def make_fingerprint(**changes: Any) -> Fingerprint:
    """A fingerprint with some fields changed, whichever part they are in."""
    return Fingerprint(
        identity={name: changes.get(name, value) for name, value in IDENTITY.items()},
        environment={name: changes.get(name, value) for name, value in ENVIRONMENT.items()},
    )


HALVES: tuple[Half, Half] = ("train", "test")


def make_dataset(num_videos: int, name: str = "toy") -> Dataset:
    """Videos of two classes, in both halves of split 1."""
    rows = [(f"c{i % 2}/v{i:05d}.avi", i % 2, {1: HALVES[i % 3 > 1]}) for i in range(num_videos)]
    return Dataset.of_whole_videos(name, "folder", ("a", "b"), sorted(rows, key=lambda row: row[0]))


def video_features(video_id: str, num_frames: int, views: int = 1) -> dict[Level, np.ndarray]:
    """Features `[V, F, C]` that depend on the id alone."""
    rng = np.random.default_rng(list(video_id.encode()))
    return {
        level: rng.standard_normal((views, num_frames, CHANNELS[level]), dtype=np.float32).astype(np.float16)
        for level in LEVELS
    }


def num_frames_of(video_id: str) -> int:
    """A length between 1 and 40 that depends on the id alone."""
    return sum(video_id.encode()) % 40 + 1


def make_shard(video_ids: Sequence[str], views: int = 1) -> ShardData:
    """A shard with the features of these videos."""
    lengths = [num_frames_of(video_id) for video_id in video_ids]
    parts = [video_features(video_id, length, views) for video_id, length in zip(video_ids, lengths, strict=True)]
    return ShardData(
        video_ids=tuple(video_ids),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        pts_seconds=np.concatenate([np.arange(length) / 25 for length in lengths]),
        features={level: np.concatenate([part[level] for part in parts], axis=1) for level in LEVELS},
    )


def done(video_ids: Sequence[str]) -> list[Outcome]:
    """Outcomes that go with `make_shard`."""
    return [Outcome(video_id=video_id, status="done", num_frames=num_frames_of(video_id)) for video_id in video_ids]


def make_cache(path: Path, num_videos: int, *, backend: str = "h5", views: Sequence[str] = ("center",)) -> FeatureCache:
    """An empty cache of made-up videos."""
    return FeatureCache.create(
        path,
        dataset=make_dataset(num_videos),
        fingerprint=make_fingerprint(views=list(views)),
        settings={"data": "nowhere"},
        backend=backend,
    )


def fill(cache: FeatureCache, *, shard_videos: int = 4, owner: str = "test") -> None:
    """Commit features of all pending videos, `shard_videos` at a time."""
    while claim := cache.ledger.claim(owner, shard_videos, 60):
        ids = [video.id for video in claim.videos]
        cache.commit(claim, make_shard(ids, len(cache.views)), done(ids), cache.fingerprint.environment)
    cache.close()


def filled_cache(
    path: Path, num_videos: int, *, shard_videos: int = 4, backend: str = "h5", views: Sequence[str] = ("center",)
) -> FeatureCache:
    """A cache with features of all its videos: a copy of one that is made once."""
    shutil.copytree(_template(num_videos, shard_videos, backend, tuple(views)), path)
    return FeatureCache.open(path)


@functools.cache
def _template(num_videos: int, shard_videos: int, backend: str, views: tuple[str, ...]) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="cache-template-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    fill(make_cache(folder / "cache", num_videos, backend=backend, views=views), shard_videos=shard_videos)
    return folder / "cache"
