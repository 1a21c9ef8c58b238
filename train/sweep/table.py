"""The table of a finished sweep: mean and standard deviation over seeds, as Markdown and as data.

Shapes: N videos, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache.aggregate import (
    FEW_VIDEOS,
    MEAN_WEIGHTS,
    PAPER_WEIGHTS,
    TOO_FEW,
    align,
    correct,
    fraction,
    fuse_levels,
    log_loss,
    macro_accuracy,
    search_weights,
    wilson,
)
from cache.common.files import discard_leftovers, write_bytes_durably, write_sealed_json
from cache.common.text import markdown_table, text_table
from cache.common.workspace import Workspace
from cache.fingerprint import LEVELS, Level
from cache.scores import read_scores
from train.sweep.grid import SweepPoint
from train.sweep.plan import Plan

FUSED = "fused 0.7/0.2/0.1"
MEAN = "mean of levels"
SEARCHED = "fused, weights held-out"


@dataclass(frozen=True, kw_only=True)
class TableCell:
    """One number of the table, from several runs."""

    row: str
    column: str
    accuracies: tuple[float, ...]
    """For each seed, the mean over splits of the share of videos that are right."""
    macros: tuple[float, ...]
    """For each seed, the mean over splits of the classes' mean accuracy."""
    log_losses: tuple[float, ...]
    """For each seed, the mean over splits and videos with features of -ln(probability of the right class)."""

    @property
    def text(self) -> str:
        """`81.4 ± 0.3`: mean and sample standard deviation over seeds, in percent."""
        mean = 100 * float(np.mean(self.accuracies))
        if len(self.accuracies) < 2:
            return f"{mean:.1f}"
        return f"{mean:.1f} ± {100 * float(np.std(self.accuracies, ddof=1)):.1f}"


def make_table(plan: Plan, workspace: Workspace) -> list[TableCell]:
    """Returns a row for each point, with a column for each level and, if there are all three, for each fusion.

    Accuracy is the share of all videos of the half that are right; a video without features counts as wrong.
    """
    made = []
    for row in dict.fromkeys(point.label for point in plan.points):
        levels = {point.level: point for point in plan.points if point.label == row}
        by_seed = [_mean_over_splits(plan, levels, seed, workspace) for seed in plan.seeds]
        for column in by_seed[0]:
            accuracies, macros, log_losses = zip(*(each[column] for each in by_seed), strict=True)
            cell = TableCell(row=row, column=column, accuracies=accuracies, macros=macros, log_losses=log_losses)
            made.append(cell)
    return made


def _mean_over_splits(
    plan: Plan, levels: Mapping[Level, SweepPoint], seed: int, workspace: Workspace
) -> dict[str, tuple[float, float, float]]:
    """Accuracy, macro accuracy and mean log loss of each column."""
    results = []
    for split in plan.splits:
        columns, label_N = _columns(plan, levels, split, seed, workspace)
        results.append({name: _figures(p_NK, label_N) for name, p_NK in columns.items()})
    return {name: tuple(np.mean([result[name] for result in results], axis=0).tolist()) for name in results[0]}


def _figures(probabilities_NK: NDArray[np.float64], label_N: NDArray[np.int64]) -> tuple[float, float, float]:
    right_N = correct(probabilities_NK, label_N)
    macro = macro_accuracy(right_N, label_N, probabilities_NK.shape[1])
    return fraction(right_N), macro, log_loss(probabilities_NK, label_N)


def _columns(
    plan: Plan, levels: Mapping[Level, SweepPoint], split: int, seed: int, workspace: Workspace
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.int64]]:
    """Probabilities `[N, K]` for each column, a level or a fusion, of one split and seed; and the labels `[N]`."""
    probabilities, label_N = _probabilities(plan, levels, split, seed, workspace, holdout=plan.holdout)
    found: dict[str, NDArray[np.float64]] = {str(level): each for level, each in probabilities.items()}
    if len(levels) == len(LEVELS):
        found[FUSED] = fuse_levels(probabilities, PAPER_WEIGHTS)
        found[MEAN] = fuse_levels(probabilities, MEAN_WEIGHTS)
        if plan.search_fusion:
            heldout, heldout_label_N = _probabilities(plan, levels, split, seed, workspace, holdout=True)
            have_N = ~np.isnan(heldout["high"]).any(axis=1)
            weights = search_weights({level: each[have_N] for level, each in heldout.items()}, heldout_label_N[have_N])
            found[SEARCHED] = fuse_levels(probabilities, weights)
    return found, label_N


def _probabilities(
    plan: Plan, levels: Mapping[Level, SweepPoint], split: int, seed: int, workspace: Workspace, *, holdout: bool
) -> tuple[dict[Level, NDArray[np.float64]], NDArray[np.int64]]:
    """Probabilities `[N, K]` of each level, with NaN rows for videos without features; and the labels `[N]`."""
    samples = plan.splits[split].listed(holdout=holdout, seed=seed)
    probabilities = {}
    for level, point in levels.items():
        config = plan.config(point, split, seed, holdout=holdout)
        scores = read_scores(config.folder(workspace) / config.scores_file)
        ids, of_videos, _ = scores.videos()
        probabilities[level] = align(ids, of_videos, [sample.id for sample in samples])
    return probabilities, np.array([-1 if sample.label is None else sample.label for sample in samples], dtype=np.int64)


def write_table(plan: Plan, workspace: Workspace, folder: Path, command: str) -> tuple[str, str]:
    """Write the sweep's table.md and results.json into `folder`. Returns the table in Markdown and for a terminal."""
    split = plan.first_split
    what = "held-out training videos" if plan.holdout else "test videos"
    splits, seeds = (", ".join(map(str, numbers)) for numbers in (plan.splits, plan.seeds))
    recipes = sorted({point.recipe.name for point in plan.points})
    notes = [
        f"{plan.dataset}, split {splits}, seeds {seeds}: percent of {what} classified right; mean ± sample "
        "standard deviation over seeds",
        f"recipe {', '.join(recipes)}; backbone weights {split.cache.fingerprint.identity.get('weights')}",
        f"made by `{command}`",
    ]
    fewest = min(
        len(each.listed(holdout=plan.holdout, seed=seed)) for each in plan.splits.values() for seed in plan.seeds
    )
    widest = wilson(fewest // 2, fewest)
    known = f"the accuracy of one run is known to ± {50 * (widest.high - widest.low):.1f} points or better (95 %)"
    notes.append(f"{fewest:,} {what}: {TOO_FEW if fewest < FEW_VIDEOS else known}")
    if plan.holdout:
        notes.append("each seed holds out another fifth of the groups; in brackets the mean -ln p of the right class")
        notes += dict.fromkeys(note for seed in plan.seeds for note in split.held_out_notes(seed))
    if split.dataset.subset:
        notes.append("the dataset is a subset of the published one")
    table = make_table(plan, workspace)
    heads, rows = cells_of(table, losses=plan.holdout)
    markdown = "\n".join([markdown_table(heads, rows), "", *(f"- {note}" for note in notes), ""])
    shown = [text_table(heads, rows, range(1, len(heads))), "", *(f"- {note}" for note in notes)]
    discard_leftovers(folder)
    write_bytes_durably(folder / "table.md", markdown.encode())
    results = {
        "splits": list(plan.splits),
        "seeds": list(plan.seeds),
        "holdout": plan.holdout,
        "recipes": recipes,
        "cache_digest": {number: each.digest for number, each in plan.splits.items()},
        "notes": notes,
        "cells": [
            {
                "setting": cell.row,
                "column": cell.column,
                "accuracy": cell.accuracies,
                "macro": cell.macros,
                "log_loss": cell.log_losses,
                "text": cell.text,
            }
            for cell in table
        ],
    }
    write_sealed_json(folder / "results.json", results)
    return markdown, "\n".join(shown)


def cells_of(table: Sequence[TableCell], *, losses: bool) -> tuple[list[str], list[list[str]]]:
    """Heading and rows, in percent; `losses` adds the mean log loss in brackets."""
    columns = list(dict.fromkeys(cell.column for cell in table))
    rows = list(dict.fromkeys(cell.row for cell in table))
    text = {
        (cell.row, cell.column): f"{cell.text} ({np.mean(cell.log_losses):.3f})" if losses else cell.text
        for cell in table
    }
    return ["setting", *columns], [[row, *(text.get((row, column), "–") for column in columns)] for row in rows]
