"""The held-out part of a training split: cut by group, so that no two clips of one filming stand on both sides.

One split of a cached dataset as training needs it: which videos it learns from, which it scores. No torch.
"""

import hashlib
import platform
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

from cache.clips import ClipRule
from cache.common.errors import TrainingError
from cache.common.workspace import Workspace
from cache.dataset import Dataset, Half, Video, group_of
from cache.fingerprint import Level
from cache.store import FeatureCache
from train.config import RunConfig, cache_digest, variant_of
from train.recipes import Pool, Recipe, default_recipe

FIFTHS = 5
"""Of so many parts of each class's groups one is held out."""


def split_off(videos: Sequence[Video], turn: int = 0) -> tuple[tuple[Video, ...], tuple[Video, ...]]:
    """Cut training videos into (to learn from, held out), each class's groups apart, the same way at every call.

    Of each class a fifth of the groups is held out, at least one, by a hash of their names; `turn` says which fifth, so
    that turns 0 to 4 hold each group out once. A class with a single group is refused (TrainingError): nothing would be
    left to learn from or to check on.
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


_NAMED_VERSIONS = ("torch", "numpy", "safetensors", "mrrn")


@dataclass(frozen=True, kw_only=True)
class Split:
    """The videos of one split that have features. Test videos are named here and not looked at before scoring."""

    cache: FeatureCache
    dataset: Dataset
    number: int
    training: tuple[Video, ...]
    test: tuple[Video, ...]
    digest: str
    """Digest of the cache's fingerprint and of these videos."""

    def learned_and_scored(self, *, holdout: bool, seed: int) -> tuple[tuple[Video, ...], tuple[Video, ...]]:
        """Videos to learn from and videos to score: training and test ones, or the two parts of the training ones.

        Each seed holds out the next fifth of the training videos' groups: five seeds hold out each group once.
        """
        return split_off(self.training, seed) if holdout else (self.training, self.test)

    def listed(self, *, holdout: bool, seed: int) -> tuple[Video, ...]:
        """Every video that accuracy is counted over: the test half (also without features), or the held-out part."""
        return split_off(self.training, seed)[1] if holdout else self.dataset.half(self.number, "test")

    def training_clips(self, rule: ClipRule) -> int:
        """Clips of the training videos."""
        if rule.fps is not None:
            return sum(len(rule.frames(self.cache.pts_seconds(video.id))) for video in self.training)
        return sum(rule.count(self.cache.num_frames(video.id)) for video in self.training)

    def usual_recipe(self) -> tuple[Recipe, str]:
        """The recipe for a split of this size, and why."""
        return default_recipe(self.training_clips(ClipRule()))

    def config(self, *, level: Level, pool: Pool, seed: int, recipe: Recipe, usual: Recipe, holdout: bool) -> RunConfig:
        """The configuration of one run on this split."""
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
            versions={"python": platform.python_version(), **{name: version(name) for name in _NAMED_VERSIONS}},
        )


def open_split(workspace: Workspace, dataset: str, number: int) -> Split:
    """Open the cache of `dataset`; errors say what to extract where nothing, or not everything, was extracted."""
    folder = workspace.cache(dataset)
    if not (folder / "cache.json").exists():
        raise TrainingError(f"nothing was extracted for dataset {dataset!r} yet: run `make extract DATASET={dataset}`")
    cache = FeatureCache.open(folder)
    cache.require_finished()
    have = set(cache.video_ids)
    training = _with_features(cache.dataset, number, "train", have)
    test = _with_features(cache.dataset, number, "test", have)
    described: list[tuple[str, int | None, str, int]] = []
    for half, videos in (("train", training), ("test", test)):
        described += [(video.id, video.label, half, cache.num_frames(video.id)) for video in videos]
    return Split(
        cache=cache,
        dataset=cache.dataset,
        number=number,
        training=training,
        test=test,
        digest=cache_digest(cache.fingerprint.digest, described),
    )


def _with_features(dataset: Dataset, number: int, half: Half, have: set[str]) -> tuple[Video, ...]:
    videos: Sequence[Video] = dataset.half(number, half)
    kept = tuple(video for video in videos if video.id in have)
    if not kept:
        raise TrainingError(
            f"split {number} of dataset {dataset.name!r} has no {half} videos with features ({len(videos)} are "
            "listed): look at the split files and at `python -m cache info`, or choose another split with SPLIT="
        )
    return kept
