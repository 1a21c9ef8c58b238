"""Finished caches to train on: labelled videos in groups, with features around a direction of their class."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cache.common.workspace import Workspace
from cache.dataset import Dataset, Half, Sample
from cache.fingerprint import CHANNELS, LEVELS, Fingerprint, Level
from cache.ledger import Outcome
from cache.shards.protocol import ShardData
from cache.store import FeatureCache
from tests.helpers.cache import make_fingerprint

# Heads are tiny: several threads would only wait for each other.
torch.set_num_threads(1)

MakeFeatures = Callable[[Sample, Level, int, np.random.Generator], NDArray[np.floating]]
"""Sample, level, number of frames, generator -> features `[V, F, C]`, with V = 2."""


def grouped_dataset(
    name: str = "tiny", *, classes: int = 3, groups: int = 4, videos_per_group: int = 2, test_groups: int = 1
) -> Dataset:
    """Returns videos named like UCF-101's; the first `test_groups` groups of each class are split 1's test half."""
    names = tuple(f"Class{label}" for label in range(classes))
    rows: list[tuple[str, int, dict[int, Half]]] = []
    for label, class_name in enumerate(names):
        for group in range(1, groups + 1):
            half: Half = "test" if group <= test_groups else "train"
            for clip in range(1, videos_per_group + 1):
                path = f"{class_name}/v_{class_name}_g{group:02}_c{clip:02}.avi"
                rows.append((path, label, {1: half}))
    return Dataset.of_whole_videos(name, "folder", names, rows)


def separable(sample: Sample, level: Level, frames: int, generator: np.random.Generator) -> NDArray[np.floating]:
    """Returns noise around a direction of the video's class, which is easy to learn."""
    centre_C = np.random.default_rng(sample.label or 0).normal(size=CHANNELS[level])
    return centre_C + generator.normal(scale=2.0, size=(2, frames, CHANNELS[level]))


def trainable_cache(
    work: Path,
    dataset: Dataset | None = None,
    *,
    features: MakeFeatures = separable,
    frames: Callable[[int], int] = lambda index: 20 + 7 * (index % 5),
    leave_out: int = 0,
    fingerprint: Fingerprint | None = None,
) -> FeatureCache:
    """Returns a cache of `dataset` below `work`. Video `i` has `frames(i)` frames, 25 a second.

    The last `leave_out` videos are still pending.
    """
    dataset = dataset or grouped_dataset()
    workspace = Workspace(work)
    cache = FeatureCache.create(
        workspace.cache(dataset.name),
        dataset=dataset,
        fingerprint=fingerprint or make_fingerprint(views=["center", "center_flip"]),
        settings={"data": "nowhere"},
    )
    claim = cache.ledger.claim("test", len(dataset.videos) - leave_out, 600.0)
    assert claim is not None
    number = {sample.video: index for index, sample in enumerate(dataset.samples)}
    chosen = [dataset.samples[number[claimed.id]] for claimed in claim.videos]
    counts = [frames(number[sample.video]) for sample in chosen]
    parts = {
        level: [
            features(sample, level, count, np.random.default_rng([number[sample.video], LEVELS.index(level)]))
            for sample, count in zip(chosen, counts, strict=True)
        ]
        for level in LEVELS
    }
    data = ShardData(
        video_ids=tuple(sample.video for sample in chosen),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        pts_seconds=np.concatenate([np.arange(count) / 25 for count in counts]),
        features={level: np.concatenate(each, axis=1).astype(np.float16) for level, each in parts.items()},
    )
    outcomes = [
        Outcome(video_id=sample.video, status="done", num_frames=count)
        for sample, count in zip(chosen, counts, strict=True)
    ]
    cache.commit(claim, data, outcomes, cache.fingerprint.environment)
    cache.close()
    workspace.remember_dataset(dataset.name)
    return FeatureCache.open(workspace.cache(dataset.name))
