"""One split of a cached dataset as training needs it: which videos it learns from, and which it scores. No torch.

A held-out part of the training videos is cut by group, so that no recording is on both sides.
"""

import hashlib
import json
import platform
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from cache.clips import ClipRule
from cache.common.errors import TrainingError
from cache.common.workspace import Workspace
from cache.dataset import Dataset, Half, Video, group_of
from cache.fingerprint import Level
from cache.store import FeatureCache
from train.config import PACKAGES, RunConfig, variant_of, version_of
from train.recipes import Pool, Recipe, default_recipe

FIFTHS = 5
"""Parts that each class's groups are divided into; one of them is held out."""


def split_off(videos: Sequence[Video], turn: int = 0) -> tuple[tuple[Video, ...], tuple[Video, ...]]:
    """Returns the training videos to learn from, and those held out: the same ones at every call.

    A fifth of each class's groups is held out, and at least one. Groups are in the order of a hash of their names;
    `turn` chooses the fifth, so that turns 0 to 4 hold out each group once. Raises `TrainingError` for a class with a
    single group.
    """
    groups: dict[int, set[str]] = defaultdict(set)
    for video in videos:
        if video.label is not None:
            groups[video.label].add(group_of(video.id))
    held: set[str] = set()
    for label, names in sorted(groups.items()):
        if len(names) < 2:
            raise TrainingError(
                f"class {label} has training videos of one group only ({next(iter(names))!r}); a held-out part needs "
                "at least two: train without --holdout"
            )
        ordered = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
        parts = min(FIFTHS, len(ordered))
        held |= set(ordered[turn % parts :: parts])
    inside = tuple(video for video in videos if group_of(video.id) not in held)
    return inside, tuple(video for video in videos if group_of(video.id) in held)


@dataclass(frozen=True, kw_only=True)
class Split:
    """The videos of one split that have features. Nothing of a test video but its name is used before scoring."""

    cache: FeatureCache
    dataset: Dataset
    number: int
    training: tuple[Video, ...]
    test: tuple[Video, ...]
    digest: str
    """SHA-256 over the cache's fingerprint and each video's id, label, half of the split and frame count."""

    def learned_and_scored(self, *, holdout: bool, seed: int) -> tuple[tuple[Video, ...], tuple[Video, ...]]:
        """Returns the videos to learn from and those to score: training and test videos, or both parts of the former.

        Each seed holds out the next fifth of the training videos' groups, so that five seeds hold out each group once.
        """
        if holdout:
            return split_off(self.training, seed)
        if not self.test:
            raise _nobody(self.dataset, self.number, "test")
        return self.training, self.test

    def listed(self, *, holdout: bool, seed: int) -> tuple[Video, ...]:
        """Returns the videos that accuracy is counted over, also those without features: test half or held-out part."""
        return split_off(self.training, seed)[1] if holdout else self.dataset.half(self.number, "test")

    def usual_recipe(self) -> tuple[Recipe, str]:
        """Returns the recipe for a split with as many training clips as this one has, and the reason for it."""
        return default_recipe(sum(ClipRule().count(self.cache.num_frames(video.id)) for video in self.training))

    def config(self, *, level: Level, pool: Pool, seed: int, recipe: Recipe, usual: Recipe, holdout: bool) -> RunConfig:
        """Returns the configuration of one run on this split."""
        learned, scored = self.learned_and_scored(holdout=holdout, seed=seed)
        fingerprint = self.cache.fingerprint
        return RunConfig(
            dataset=self.dataset.name,
            split=self.number,
            level=level,
            pool=pool,
            seed=seed,
            recipe=recipe,
            classes=self.dataset.classes,
            holdout=holdout,
            variant=variant_of(recipe, usual, holdout=holdout),
            videos={"training": len(learned), "scored": len(scored)},
            cache_digest=self.digest,
            weights=str(fingerprint.identity.get("weights", "unknown")),
            fingerprint=fingerprint.to_json(),
            versions={"python": platform.python_version(), **{name: version_of(name) for name in PACKAGES}},
        )


def open_split(workspace: Workspace, dataset: str, number: int) -> Split:
    """Open the cache of `dataset`. Raises `MrrnError` if its extraction was not begun or is not finished."""
    folder = workspace.cache(dataset)
    if not (folder / "cache.json").exists():
        raise TrainingError(f"nothing was extracted for dataset {dataset!r} yet: run `make extract DATASET={dataset}`")
    cache = FeatureCache.open(folder)
    cache.require_finished()
    have = set(cache.video_ids)
    training, test = (_with_features(cache.dataset, number, half, have) for half in ("train", "test"))
    described = [
        (video.id, video.label, half, cache.num_frames(video.id))
        for half, videos in (("train", training), ("test", test))
        for video in videos
    ]
    text = json.dumps([cache.fingerprint.digest, sorted(described)], separators=(",", ":"))
    return Split(
        cache=cache,
        dataset=cache.dataset,
        number=number,
        training=training,
        test=test,
        digest=hashlib.sha256(text.encode()).hexdigest(),
    )


def _with_features(dataset: Dataset, number: int, half: Half, have: set[str]) -> tuple[Video, ...]:
    videos: Sequence[Video] = dataset.half(number, half)
    kept = tuple(video for video in videos if video.id in have)
    # Without a test half, held-out training videos can still be scored.
    if not kept and half == "train":
        raise _nobody(dataset, number, half)
    return kept


def _nobody(dataset: Dataset, number: int, half: Half) -> TrainingError:
    listed = len(dataset.half(number, half))
    return TrainingError(
        f"split {number} of dataset {dataset.name!r} has no {half} videos with features ({listed} are listed): check "
        "the split files and `python -m cache info`, or choose another split with SPLIT="
    )
