"""Sweeps: a grid of settings over seeds and splits, each run done once, and the table that comes of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache.aggregate import MEAN_WEIGHTS, PAPER_WEIGHTS, align, clips_to_videos, fuse_levels, search_weights
from cache.dataset import Video
from cache.schema import LEVELS, Level
from cache.scores import read_scores
from cache.workspace import Workspace
from train.grid import Setting
from train.recipes import Recipe
from train.runs import RunConfig
from train.split import Split

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
        made += [
            Cell(row=row, column=column, accuracies=tuple(each[column] for each in by_seed)) for column in by_seed[0]
        ]
    return made


def _mean_over_splits(plan: Plan, levels: Mapping[Level, Setting], seed: int, workspace: Workspace) -> dict[str, float]:
    results = [_accuracies(plan, levels, split, seed, workspace) for split in plan.splits]
    return {column: float(np.mean([result[column] for result in results])) for column in results[0]}


def _accuracies(
    plan: Plan, levels: Mapping[Level, Setting], split: int, seed: int, workspace: Workspace
) -> dict[str, float]:
    """Accuracy of each level and fusion for one split and seed."""
    probabilities, label_N = _probabilities(plan, levels, split, seed, workspace, holdout=plan.holdout)
    found: dict[str, float] = {level: accuracy(probabilities[level], label_N) for level in levels}
    if len(levels) == len(LEVELS):
        found[FUSED] = accuracy(fuse_levels(probabilities, PAPER_WEIGHTS), label_N)
        found[MEAN] = accuracy(fuse_levels(probabilities, MEAN_WEIGHTS), label_N)
        if plan.search_fusion:
            weights = heldout_weights(plan, levels, split, seed, workspace)
            found[SEARCHED] = accuracy(fuse_levels(probabilities, weights), label_N)
    return found


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
    videos = plan.splits[split].listed(holdout=holdout)
    probabilities = {}
    for level, setting in levels.items():
        config = plan.config(setting, split, seed, holdout=holdout)
        scores = read_scores(config.folder(workspace) / config.scores_file)
        ids, of_videos = clips_to_videos(scores.video_ids, scores.softmax)
        probabilities[level] = align(ids, of_videos, [video.id for video in videos])
    return probabilities, _labels(videos)


def _labels(videos: Sequence[Video]) -> NDArray[np.int64]:
    return np.array([-1 if video.label is None else video.label for video in videos], dtype=np.int64)


def accuracy(probabilities_NK: NDArray[np.float64], label_N: NDArray[np.int64]) -> float:
    """Share of videos whose most probable class is theirs; a NaN row is wrong."""
    have_N = np.asarray(~np.isnan(probabilities_NK).any(axis=1))
    right_N = probabilities_NK[have_N].argmax(axis=1) == label_N[have_N]
    return int(right_N.sum()) / len(label_N)


def to_markdown(table: Sequence[Cell], notes: Sequence[str]) -> str:
    """The table in Markdown, percent, with notes below it."""
    columns = list(dict.fromkeys(cell.column for cell in table))
    rows = list(dict.fromkeys(cell.row for cell in table))
    text = {(cell.row, cell.column): cell.text for cell in table}
    lines = [f"| setting | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    lines += [f"| {row} | " + " | ".join(text[row, column] for column in columns) + " |" for row in rows]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes), ""])


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
            {"setting": cell.row, "column": cell.column, "accuracy": list(cell.accuracies), "text": cell.text}
            for cell in table
        ],
    }
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
