"""Finished caches to train on: labelled videos in groups, with features around a direction of their class."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cache.common.workspace import Workspace
from cache.dataset import Dataset, Half, Video
from cache.fingerprint import CHANNELS, LEVELS, Fingerprint, Level
from cache.ledger import Outcome
from cache.shards.protocol import ShardData
from cache.store import FeatureCache
from tests.helpers.cache import make_fingerprint

# Heads are tiny: several threads would only wait for each other.
torch.set_num_threads(1)

MakeFeatures = Callable[[Video, Level, int, np.random.Generator], NDArray[np.floating]]
"""Video, level, number of frames, generator -> features `[V, F, C]`, with V = 2."""


def grouped_dataset(
    name: str = "tiny", *, classes: int = 3, groups: int = 4, videos_per_group: int = 2, test_groups: int = 1
) -> Dataset:
    """Returns videos named like UCF-101's; the first `test_groups` groups of each class are split 1's test half."""
    names = tuple(f"Class{label}" for label in range(classes))
    videos = []
    for label, class_name in enumerate(names):
        for group in range(1, groups + 1):
            half: Half = "test" if group <= test_groups else "train"
            for clip in range(1, videos_per_group + 1):
                video = f"{class_name}/v_{class_name}_g{group:02}_c{clip:02}"
                videos.append(Video(id=video, path=f"{video}.avi", label=label, splits={1: half}))
    return Dataset(name=name, source="folder", classes=names, videos=tuple(videos))


def separable(video: Video, level: Level, frames: int, generator: np.random.Generator) -> NDArray[np.floating]:
    """Returns noise around a direction of the video's class, which is easy to learn."""
    centre_C = np.random.default_rng(video.label or 0).normal(size=CHANNELS[level])
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
    number = {video.id: index for index, video in enumerate(dataset.videos)}
    chosen = [dataset.videos[number[claimed.id]] for claimed in claim.videos]
    counts = [frames(number[video.id]) for video in chosen]
    parts = {
        level: [
            features(video, level, count, np.random.default_rng([number[video.id], LEVELS.index(level)]))
            for video, count in zip(chosen, counts, strict=True)
        ]
        for level in LEVELS
    }
    data = ShardData(
        video_ids=tuple(video.id for video in chosen),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        pts_seconds=np.concatenate([np.arange(count) / 25 for count in counts]),
        features={level: np.concatenate(each, axis=1).astype(np.float16) for level, each in parts.items()},
    )
    outcomes = [
        Outcome(video_id=video.id, status="done", num_frames=count) for video, count in zip(chosen, counts, strict=True)
    ]
    cache.commit(claim, data, outcomes, cache.fingerprint.environment)
    cache.close()
    workspace.remember_dataset(dataset.name)
    return FeatureCache.open(workspace.cache(dataset.name))
