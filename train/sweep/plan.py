"""The plan of a sweep: which runs it consists of, and how many of them to train at once."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cache.common.device import available_bytes
from cache.common.errors import TrainingError
from train.config import RunConfig
from train.recipes import LINEAR, Recipe, linear_beside
from train.split import Split
from train.sweep.grid import SweepPoint, grid_points


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All runs of a sweep."""

    splits: Mapping[int, Split]
    points: tuple[SweepPoint, ...]
    seeds: tuple[int, ...]
    holdout: bool
    """Score held-out training videos instead of the test half: for choosing settings."""
    search_fusion: bool
    """Train a held-out run beside each run, to find fusion weights on."""
    usual: Mapping[int, Recipe]
    """The usual recipe of each split."""

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return self.first_split.dataset.name

    @property
    def first_split(self) -> Split:
        """The split that stands for all of them where only the dataset and its cache matter."""
        return next(iter(self.splits.values()))

    def config(self, point: SweepPoint, split: int, seed: int, *, holdout: bool) -> RunConfig:
        """Returns the configuration of one run. Seeds share a `linear` run, unless they say what is held out."""
        seed = seed if holdout or point.recipe.cell != "linear" else 0
        return self.splits[split].config(
            level=point.level,
            pool=point.pool,
            seed=seed,
            recipe=point.recipe,
            usual=self.usual[split],
            holdout=holdout,
        )

    def configs(self) -> list[RunConfig]:
        """Returns every run, seed by seed, so that a sweep that ends early has whole rows for the first seeds."""
        kinds = (False, True) if self.search_fusion else (self.holdout,)
        every = [
            self.config(point, split, seed, holdout=holdout)
            for seed in self.seeds
            for split in self.splits
            for point in self.points
            for holdout in kinds
        ]
        return list({(run.split, run.level, run.pool, run.seed, run.variant): run for run in every}.values())

    def default_jobs(self, device: str) -> int:
        """Returns how many runs to train at once: one on a GPU, else one a core as far as memory allows.

        On a CPU the products of a head are too small for several cores.
        """
        import torch

        if device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()):
            return 1
        largest = 0
        for split in self.splits.values():
            frames = sum(split.cache.num_frames(video) for video in {sample.video for sample in split.training})
            largest = max(largest, frames * len(split.cache.views) * max(split.cache.widths.values()) * 2)
        return max(1, min(len(os.sched_getaffinity(0)), int(available_bytes() / 2 / (largest + (1 << 30)))))


def make_plan(
    splits: Mapping[int, Split], axes: Mapping[str, Sequence[Any]], seeds: int, *, holdout: bool, search_fusion: bool
) -> Plan:
    """Returns the plan of a grid over `splits` and seeds 0 to `seeds` - 1, and of the baseline `linear`.

    Raises `TrainingError` if the splits' usual recipes differ and no axis chooses a recipe.
    """
    usual = {number: split.usual_recipe()[0] for number, split in splits.items()}
    names = {recipe.name for recipe in usual.values()}
    if len(names) > 1 and "recipe" not in axes:
        raise TrainingError(f"the splits' usual recipes differ ({', '.join(sorted(names))}): add --grid recipe=NAME")
    points = grid_points(axes, next(iter(usual.values())), next(iter(splits.values())).recipes)
    if not any(point.recipe.cell == "linear" for point in points):
        shown = {point.level: linear_beside(point.recipe) for point in points}
        points += [
            SweepPoint(level=level, pool="mean", recipe=recipe, varied=(("recipe", LINEAR),))
            for level, recipe in shown.items()
        ]
    return Plan(
        splits=splits,
        points=tuple(points),
        seeds=tuple(range(seeds)),
        holdout=holdout,
        search_fusion=search_fusion,
        usual=usual,
    )
