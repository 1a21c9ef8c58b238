"""A cache with the size of a real dataset and random numbers as features, for `benchmarks/train.py`."""

import csv
from pathlib import Path

import numpy as np

from cache.common.workspace import Workspace
from cache.dataset import Dataset
from cache.fingerprint import CHANNELS, LEVELS, Fingerprint
from cache.ledger import Outcome
from cache.shards.protocol import ShardData
from cache.store import FeatureCache

NAME = "random-features"


def make_cache(counts: Path, workspace: Workspace, limit: int | None) -> None:
    """Make a cache with random features for every video of the CSV `counts`, unless it exists.

    `limit`: only every N-th video.
    """
    if (workspace.cache(NAME) / "cache.json").exists():
        return
    with counts.open() as file:
        used = [row for row in csv.DictReader(file) if row["split1"] in ("train", "test")]
    rows = sorted(used, key=lambda row: row["class"] + "/" + row["video"])[:: limit or 1]
    classes = sorted({row["class"] for row in rows})
    frames = {f"{row['class']}/{row['video']}": int(row["frames_decoded_estimate"]) for row in rows}
    listed = [
        (f"{name}.avi", classes.index(row["class"]), {1: row["split1"]}) for row, name in zip(rows, frames, strict=True)
    ]
    dataset = Dataset.of_whole_videos(NAME, "benchmark", classes, listed)
    identity = {"weights": "random numbers", "levels": list(LEVELS), "views": ["center"]}
    fingerprint = Fingerprint(identity=identity, environment={})
    generator = np.random.default_rng(0)
    with FeatureCache.create(
        workspace.cache(NAME), dataset=dataset, fingerprint=fingerprint, settings={}, backend="h5"
    ) as cache:
        while claim := cache.ledger.claim("benchmark", 256, 3600.0):
            ids = [video.id for video in claim.videos]
            lengths = [frames[video] for video in ids]
            data = ShardData(
                video_ids=tuple(ids),
                offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
                pts_seconds=np.concatenate([np.arange(length) / 30 for length in lengths]),
                features={
                    level: generator.standard_normal((1, sum(lengths), CHANNELS[level]), np.float32).astype(np.float16)
                    for level in LEVELS
                },
            )
            done = [Outcome(video_id=name, status="done", num_frames=n) for name, n in zip(ids, lengths, strict=True)]
            cache.commit(claim, data, done, {})
