"""Caches with random numbers as features, which compress as badly as real ones."""

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache.common.workspace import Workspace
from cache.dataset import Dataset
from cache.fingerprint import CHANNELS, LEVELS, Fingerprint, Level
from cache.ledger import Outcome
from cache.shards import Backend
from cache.shards.protocol import ShardData
from cache.store import FeatureCache

NAME = "random-features"
FRAMES_A_SECOND = 25


def random_levels(frames: int, generator: np.random.Generator) -> dict[Level, NDArray[np.float16]]:
    """Features `[1, F, C]` of each level."""
    return {
        level: generator.standard_normal((1, frames, CHANNELS[level]), np.float32).astype(np.float16)
        for level in LEVELS
    }


def make_cache(path: Path, dataset: Dataset, lengths: Mapping[str, int], backend: Backend, shard_videos: int) -> None:
    """Make a cache in which each video of `dataset` has as many frames as `lengths` says."""
    identity = {"weights": "random numbers", "levels": list(LEVELS), "views": ["center"]}
    made_with, generator = Fingerprint(identity=identity, environment={}), np.random.default_rng(0)
    with FeatureCache.create(path, dataset=dataset, fingerprint=made_with, settings={}, backend=backend) as cache:
        while claim := cache.ledger.claim("benchmark", shard_videos, 3600.0):
            of_shard = {video.id: lengths[video.id] for video in claim.videos}
            frames = list(of_shard.values())
            data = ShardData(
                video_ids=tuple(of_shard),
                offsets=np.concatenate([[0], np.cumsum(frames)]).astype(np.int64),
                pts_seconds=np.concatenate([np.arange(length) / FRAMES_A_SECOND for length in frames]),
                features=random_levels(sum(frames), generator),
            )
            done = [Outcome(video_id=name, status="done", num_frames=length) for name, length in of_shard.items()]
            cache.commit(claim, data, done, {})


def make_cache_of_size(counts: Path, workspace: Workspace, every: int) -> None:
    """Make a cache `NAME` for every N-th video of the CSV `counts` (`benchmarks/train.py`), unless it exists."""
    if (workspace.cache(NAME) / "cache.json").exists():
        return
    with counts.open() as file:
        used = [row for row in csv.DictReader(file) if row["split1"] in ("train", "test")]
    rows = {f"{row['class']}/{row['video']}": row for row in sorted(used, key=lambda row: (row["class"], row["video"]))}
    chosen = dict(list(rows.items())[::every])
    classes = sorted({row["class"] for row in chosen.values()})
    listed = [(f"{name}.avi", classes.index(row["class"]), {1: row["split1"]}) for name, row in chosen.items()]
    dataset = Dataset.of_whole_videos(NAME, "benchmark", classes, listed)
    lengths = {name: int(row["frames_decoded_estimate"]) for name, row in chosen.items()}
    make_cache(workspace.cache(NAME), dataset, lengths, "h5", 256)
