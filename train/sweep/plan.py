"""Sweeps: a grid of settings over seeds and splits, each run done once, and the table that comes of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache.aggregate import (
    MEAN_WEIGHTS,
    PAPER_WEIGHTS,
    align,
    correct,
    fraction,
    fuse_levels,
    search_weights,
)
from cache.common.text import markdown_table
from cache.common.workspace import Workspace
from cache.dataset import Video
from cache.fingerprint import LEVELS, Level
from cache.scores import read_scores
from train.config import RunConfig
from train.recipes import Recipe
from train.split import Split
from train.sweep.grid import Setting

FUSED = "fused 0.7/0.2/0.1"
MEAN = "mean of levels"
SEARCHED = "fused, weights held-out"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All runs of a sweep."""

    splits: Mapping[int, Split]
    settings: tuple[Setting, ...]
    seeds: tuple[int, ...]
    holdout: bool
    """Score held-out training videos instead of the test half: for choosing settings."""
    search_fusion: bool
    """Train a held-out run beside each run, to find fusion weights on."""
    usual: Mapping[int, Recipe]

    def config(self, setting: Setting, split: int, seed: int, *, holdout: bool) -> RunConfig:
        """Configuration of one run."""
        return self.splits[split].config(
            level=setting.level,
            pool=setting.pool,
            seed=seed,
            recipe=setting.recipe,
            usual=self.usual[split],
            holdout=holdout,
        )

    def configs(self) -> list[RunConfig]:
        """Every run, seed by seed, so that a sweep that is ended early has whole rows for the first seeds."""
        kinds = (False, True) if self.search_fusion else (self.holdout,)
        return [
            self.config(setting, split, seed, holdout=holdout)
            for seed in self.seeds
            for split in self.splits
            for setting in self.settings
            for holdout in kinds
        ]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number of the table, from several runs."""

    row: str
    column: str
    accuracies: tuple[float, ...]
    """For each seed, the mean over splits of the share of videos that are right."""
    log_losses: tuple[float, ...]
    """For each seed, the mean over splits and videos with features of -ln(probability of the right class)."""

    @property
    def text(self) -> str:
        """`81.4 ± 0.3`: mean and sample standard deviation over seeds, in percent."""
        mean = 100 * float(np.mean(self.accuracies))
        if len(self.accuracies) < 2:
            return f"{mean:.1f}"
        return f"{mean:.1f} ± {100 * float(np.std(self.accuracies, ddof=1)):.1f}"


def cells(plan: Plan, workspace: Workspace) -> list[Cell]:
    """The table of a finished sweep: a row for each setting, a column for each level and, with all three, the fusions.

    Accuracy is the share of all videos of the half that are classified right; those without features count as wrong.
    """
    made = []
    for row in dict.fromkeys(setting.label for setting in plan.settings):
        levels = {setting.level: setting for setting in plan.settings if setting.label == row}
        by_seed = [_mean_over_splits(plan, levels, seed, workspace) for seed in plan.seeds]
        for column in by_seed[0]:
            accuracies, log_losses = zip(*(each[column] for each in by_seed), strict=True)
            made.append(Cell(row=row, column=column, accuracies=accuracies, log_losses=log_losses))
    return made


Measured = tuple[float, float]
"""Accuracy and mean log loss."""


def _mean_over_splits(
    plan: Plan, levels: Mapping[Level, Setting], seed: int, workspace: Workspace
) -> dict[str, Measured]:
    results = []
    for split in plan.splits:
        probabilities, label_N = _columns(plan, levels, split, seed, workspace)
        results.append(
            {name: (fraction(correct(p, label_N)), log_loss(p, label_N)) for name, p in probabilities.items()}
        )
    means = {name: np.mean([result[name] for result in results], axis=0) for name in results[0]}
    return {name: (float(mean[0]), float(mean[1])) for name, mean in means.items()}


def _columns(
    plan: Plan, levels: Mapping[Level, Setting], split: int, seed: int, workspace: Workspace
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.int64]]:
    """What stands in each column for one split and seed, each level and fusion: `[videos, K]`; and the labels."""
    probabilities, label_N = _probabilities(plan, levels, split, seed, workspace, holdout=plan.holdout)
    found: dict[str, NDArray[np.float64]] = {str(level): each for level, each in probabilities.items()}
    if len(levels) == len(LEVELS):
        found[FUSED] = fuse_levels(probabilities, PAPER_WEIGHTS)
        found[MEAN] = fuse_levels(probabilities, MEAN_WEIGHTS)
        if plan.search_fusion:
            found[SEARCHED] = fuse_levels(probabilities, heldout_weights(plan, levels, split, seed, workspace))
    return found, label_N


def heldout_weights(
    plan: Plan, levels: Mapping[Level, Setting], split: int, seed: int, workspace: Workspace
) -> dict[Level, float]:
    """Fusion weights found on the held-out training videos of one split and seed."""
    probabilities, label_N = _probabilities(plan, levels, split, seed, workspace, holdout=True)
    have_N = ~np.isnan(probabilities["high"]).any(axis=1)
    return search_weights({level: each[have_N] for level, each in probabilities.items()}, label_N[have_N])


def _probabilities(
    plan: Plan, levels: Mapping[Level, Setting], split: int, seed: int, workspace: Workspace, *, holdout: bool
) -> tuple[dict[Level, NDArray[np.float64]], NDArray[np.int64]]:
    """`[videos, K]` of each level, NaN rows for videos without features, and the videos' labels."""
    videos = plan.splits[split].listed(holdout=holdout, seed=seed)
    probabilities = {}
    for level, setting in levels.items():
        config = plan.config(setting, split, seed, holdout=holdout)
        scores = read_scores(config.folder(workspace) / config.scores_file)
        ids, of_videos, _ = scores.videos()
        probabilities[level] = align(ids, of_videos, [video.id for video in videos])
    return probabilities, _labels(videos)


def _labels(videos: Sequence[Video]) -> NDArray[np.int64]:
    return np.array([-1 if video.label is None else video.label for video in videos], dtype=np.int64)


def log_loss(probabilities_NK: NDArray[np.float64], label_N: NDArray[np.int64]) -> float:
    """Mean of -ln(probability of the right class) over the videos that have probabilities; 0 counts as 1e-12."""
    have_N = np.asarray(~np.isnan(probabilities_NK).any(axis=1))
    right_N = probabilities_NK[have_N, label_N[have_N]]
    return float(-np.log(np.maximum(right_N, 1e-12)).mean())


def to_markdown(table: Sequence[Cell], notes: Sequence[str], *, losses: bool = False) -> str:
    """The table in Markdown, percent, with notes below it; `losses` adds the mean log loss in brackets."""
    columns = list(dict.fromkeys(cell.column for cell in table))
    rows = list(dict.fromkeys(cell.row for cell in table))
    text = {
        (cell.row, cell.column): f"{cell.text} ({np.mean(cell.log_losses):.3f})" if losses else cell.text
        for cell in table
    }
    cells_of = [[row, *(text[row, column] for column in columns)] for row in rows]
    return "\n".join([markdown_table(["setting", *columns], cells_of), "", *(f"- {note}" for note in notes), ""])


def to_json(table: Sequence[Cell], plan: Plan, notes: Sequence[str]) -> str:
    """The same numbers as data."""
    value = {
        "splits": list(plan.splits),
        "seeds": list(plan.seeds),
        "holdout": plan.holdout,
        "recipes": sorted({setting.recipe.name for setting in plan.settings}),
        "cache_digest": {number: split.digest for number, split in plan.splits.items()},
        "notes": list(notes),
        "cells": [
            {
                "setting": cell.row,
                "column": cell.column,
                "accuracy": list(cell.accuracies),
                "log_loss": list(cell.log_losses),
                "text": cell.text,
            }
            for cell in table
        ],
    }
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
