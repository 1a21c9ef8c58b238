"""A small data set of tiny videos, and the command line run on it."""

from pathlib import Path

import numpy as np
from click.testing import CliRunner, Result

from cache.store import FeatureCache
from extract.cli import main
from tests.helpers.video import encode

QUICK = ("--weights", "random:0", "--backbone", "shufflenet_v2_x0_5", "--batch-frames", "4", "--precision", "fp32")


def make_videos(root: Path, count: int = 4, frames: int = 5) -> Path:
    """`count` videos in two classes below `root`, of `frames` frames and more."""
    for index in range(count):
        folder = root / f"class{index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        encode(folder / f"v_g{index:02d}_c01.avi", frames + index % 3, size=(48, 64 + 16 * (index % 2)))
    return root


def extract(tmp_path: Path, *options: str, dataset: str = "toy", quick: bool = True) -> Result:
    """`python -m extract` on `dataset` with `work` in `tmp_path`, in this process."""
    command = ["--work", str(tmp_path / "work"), "--dataset", dataset, "--device", "cpu", *options]
    return CliRunner().invoke(main, [*command, *(QUICK if quick else ())], catch_exceptions=False)


def cache_of(tmp_path: Path, dataset: str = "toy") -> FeatureCache:
    """The cache that `extract` made."""
    return FeatureCache.open(tmp_path / "work" / "cache" / dataset)


def everything(cache: FeatureCache) -> dict[tuple[str, str, int], np.ndarray]:
    """All features of a cache, by video, level and view."""
    return {
        (video_id, level, view): cache.features(video_id, level, view)
        for video_id in cache.video_ids
        for level in cache.levels
        for view in range(len(cache.views))
    }


def assert_same(ours: dict, theirs: dict) -> None:
    """Bit for bit the same features of the same videos."""
    assert ours.keys() == theirs.keys()
    for key, features in ours.items():
        assert np.array_equal(features, theirs[key]), key
