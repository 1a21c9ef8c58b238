"""One split of a cached dataset as training needs it: which samples it learns from, and which it scores. No torch.

A held-out part of the training samples is cut by group, so that no recording is on both sides.
"""

import hashlib
import json
import platform
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from cache.clips import ClipRule
from cache.common.errors import TrainingError
from cache.common.text import some
from cache.common.workspace import Workspace
from cache.dataset import Dataset, Half, Sample
from cache.fingerprint import Level
from cache.store import FeatureCache
from train.config import PACKAGES, RunConfig, variant_of, version_of
from train.recipes import Pool, Recipe, default_recipe, recipes_for

FIFTHS = 5
"""Parts that each class's groups are divided into; one of them is held out."""


def split_off(samples: Sequence[Sample], turn: int = 0) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Returns the training samples to learn from, and those held out: the same ones at every call.

    A fifth of each class's groups is held out, and at least one, but nothing of a class with a single group. Groups are
    in the order of a hash of their names; `turn` chooses the fifth, so that turns 0 to 4 hold out each group once.
    Raises `TrainingError` if that leaves nothing held out, or a class with nothing to learn from.
    """
    groups: dict[int, set[str]] = defaultdict(set)
    for sample in samples:
        if sample.label is not None:
            groups[sample.label].add(sample.group_name)
    held: set[str] = set()
    for names in groups.values():
        ordered = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
        parts = min(FIFTHS, len(ordered))
        held |= set(ordered[turn % parts :: parts]) if parts > 1 else set()
    if not held:
        raise TrainingError(
            f"each of the {len(groups)} classes has training videos of one group only; a held-out part needs a class "
            "with at least two: train without --holdout and --watch"
        )
    if empty := [label for label, names in groups.items() if names <= held]:
        raise TrainingError(
            f"the held-out groups have all training videos of class {empty[0]}, which shares its groups with others: "
            "train without --holdout and --watch, or with another --seed"
        )
    inside = tuple(sample for sample in samples if sample.group_name not in held)
    return inside, tuple(sample for sample in samples if sample.group_name in held)


@dataclass(frozen=True, kw_only=True)
class Split:
    """The samples of one split that have features. Nothing of a test sample but its name is used before scoring."""

    cache: FeatureCache
    dataset: Dataset
    number: int
    training: tuple[Sample, ...]
    test: tuple[Sample, ...]
    digest: str
    """SHA-256 over the cache's fingerprint and each sample's id, label, half, frames, given group, replaced file."""

    def learned_and_scored(
        self, *, holdout: bool, seed: int, watch: bool = False
    ) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
        """Returns the samples to learn from and those to score: training and test half, or both parts of the former.

        Each seed holds out the next fifth of the training samples' groups, so that five seeds hold out each group once.
        A run that watches that part (`held_out`) does not learn from it either.
        """
        if not (holdout or self.test):
            raise _nobody(self.dataset, self.number, "test")
        inside = split_off(self.training, seed)[0] if holdout or watch else self.training
        return inside, self.held_out(seed) if holdout else self.test

    def held_out(self, seed: int) -> tuple[Sample, ...]:
        """Returns the training samples that runs of this seed hold out, if they do."""
        return split_off(self.training, seed)[1]

    def held_out_notes(self, seed: int) -> list[str]:
        """Returns what a user has to know of them: classes that are not among them."""
        labels = {sample.label for sample in self.training} - {sample.label for sample in self.held_out(seed)}
        names = sorted(self.dataset.classes[label] for label in labels if label is not None)
        return [f"nothing is held out of classes whose videos are of one group: {some(names)}"] if names else []

    def listed(self, *, holdout: bool, seed: int) -> tuple[Sample, ...]:
        """Returns the samples that accuracy is counted over, also those without features: test or held-out part."""
        return self.held_out(seed) if holdout else self.dataset.half(self.number, "test")

    def usual_recipe(self) -> tuple[Recipe, str]:
        """Returns the recipe for a split with as many training clips as this one has, and the reason for it."""
        clips = sum(ClipRule().count(len(self.cache.frames_of(sample))) for sample in self.training)
        name, why = default_recipe(self.dataset.source, clips)
        return self.recipes[name], why

    @property
    def recipes(self) -> dict[str, Recipe]:
        """The recipes by name, as they are for this dataset."""
        return recipes_for(self.dataset.source)

    def config(
        self,
        *,
        level: Level,
        pool: Pool,
        seed: int,
        recipe: Recipe,
        usual: Recipe,
        holdout: bool,
        watch: bool = False,
    ) -> RunConfig:
        """Returns the configuration of one run on this split. Raises `MrrnError` if the cache lacks the level or
        some of the views.
        """
        self.cache.check_request(level, ())
        if recipe.views > len(self.cache.views):
            raise TrainingError(
                f"recipe {recipe.name!r} draws from {recipe.views} views of each video, the cache of "
                f"{self.dataset.name!r} has {len(self.cache.views)} ({', '.join(self.cache.views)}): extract with more "
                "VIEWS=, or ask for fewer"
            )
        learned, scored = self.learned_and_scored(holdout=holdout, seed=seed, watch=watch)
        videos = {"training": len(learned), "scored": len(scored)}
        if watch:
            videos["watched"] = len(self.held_out(seed))
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
            watch=watch,
            variant=variant_of(recipe, usual, holdout=holdout, watch=watch, recipes=self.recipes),
            videos=videos,
            cache_digest=self.digest,
            weights=str(fingerprint.identity.get("weights", "unknown")),
            fingerprint=fingerprint.to_json(),
            versions={"python": platform.python_version(), **{name: version_of(name) for name in PACKAGES}},
        )


def open_split(workspace: Workspace, dataset: str, number: int) -> Split:
    """Open the cache of `dataset`. Raises `MrrnError` if its extraction was not begun or is not finished."""
    cache = FeatureCache.open(workspace.existing_cache(dataset))
    cache.require_finished()
    training, test = (_with_features(cache, number, half) for half in ("train", "test"))
    replaced = cache.ledger.replaced_files()
    described = [
        (
            *(sample.id, sample.label, half, len(cache.frames_of(sample))),
            # What earlier versions did not have comes in where there is something to say: their runs stay valid.
            *([sample.group] if sample.group else []),
            *([replaced[sample.video]] if sample.video in replaced else []),
        )
        for half, samples in (("train", training), ("test", test))
        for sample in samples
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


def _with_features(cache: FeatureCache, number: int, half: Half) -> tuple[Sample, ...]:
    samples: Sequence[Sample] = cache.dataset.half(number, half)
    kept = tuple(sample for sample in samples if cache.frames_of(sample))
    # Without a test half, held-out training samples can still be scored.
    if not kept and half == "train":
        raise _nobody(cache.dataset, number, half)
    return kept


def _nobody(dataset: Dataset, number: int, half: Half) -> TrainingError:
    listed = len(dataset.half(number, half))
    return TrainingError(
        f"split {number} of dataset {dataset.name!r} has no {half} videos with features ({listed} are listed): check "
        "the split files and `mrrn cache info`, or choose another split with SPLIT="
    )
