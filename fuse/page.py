"""What report.html shows, as plain values in reading order; names made visible, nothing escaped yet.

Shapes: N videos, K classes.
"""

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from fuse import metrics, paper
from fuse.results import MODELS, TITLES, Model, Results
from fuse.summary import Made, fused_against_high, own_fields
from fuse.text import visible

EXAMPLES: Final = 4
"""Videos named for a cell of the confusion matrix."""

PAIRS: Final = 20
"""Confusions listed, the most frequent first."""

STEPS: Final = 10
"""Strengths of colour in the confusion matrix."""

WIDTH: Final = 860.0
"""Pixels that the confusion matrix takes where there is room, without its labels."""

CELL: Final = (8.5, 42.0)
"""Pixels of a cell at least, so that 101 names can be read, and at most."""

LABEL: Final = 24
"""Characters of a class name beside the matrix."""


def page_of(results: Results, notes: Sequence[str], made: Made) -> dict[str, Any]:
    """Everything that the template needs."""
    return {
        "heading": f"{paper.DATASETS.get(results.dataset, results.dataset)}, split {results.split}",
        "notes": list(notes),
        "made": made,
        "pool": results.pool,
        "weights": results.weights,
        "videos": len(results.video_ids),
        "clips": results.clips,
        "right": int(results.correct["fused"].sum()),
        "models": [_model(results, model) for model in results.models],
        "fused_against_high": fused_against_high(results),
        "literature": _literature(results),
        "classes": _classes(results),
        "matrix": _matrix(results),
        "pairs": _pairs(results),
        "problems": _problems(results),
        "provenance": _provenance(results, made),
        "commands": _commands(results),
    }


def _model(results: Results, model: Model) -> dict[str, Any]:
    interval = metrics.accuracy_interval(results.correct[model])
    printed, accuracy = results.paper[model], results.accuracy(model)
    published = None if printed is None else printed / 100
    return {
        "key": model,
        "title": TITLES[model].partition(" (")[0],
        "formula": _formula(results, model),
        "accuracy": accuracy,
        "low": interval.low,
        "high": interval.high,
        "top5": results.top5(model),
        "paper": published,
        "difference": None if published is None else accuracy - published,
    }


def _formula(results: Results, model: Model) -> str:
    if model == "searched" and results.searched_weights:
        shares = " + ".join(f"{share:g} {level}" for level, share in results.searched_weights.items())
        return f"{shares}, found on held-out training videos"
    return TITLES[model].partition(" (")[2].rstrip(")")


def _literature(results: Results) -> list[dict[str, Any]]:
    """The paper's Table 3 for this dataset, in its order."""
    rows = [(row, row.accuracy(results.dataset)) for row in paper.TABLE_3]
    return [
        {"model": row.model, "group": row.group, "accuracy": value / 100} for row, value in rows if value is not None
    ]


def _classes(results: Results) -> list[dict[str, Any]]:
    matrix = results.confusion()
    shares = {model: results.per_class(model) for model in MODELS}
    rivals = matrix[:, : len(results.classes)].copy()
    np.fill_diagonal(rivals, 0)
    return [
        {
            "name": visible(name),
            "videos": int(matrix[index].sum()),
            "shares": {model: float(shares[model][index]) for model in MODELS},
            "rival": visible(results.classes[int(rivals[index].argmax())]) if rivals[index].any() else None,
            "times": int(rivals[index].max()),
        }
        for index, name in enumerate(results.classes)
    ]


def _examples(results: Results) -> dict[tuple[int, int], list[str]]:
    """The first videos of each cell of the confusion matrix."""
    found: dict[tuple[int, int], list[str]] = {}
    columns = metrics.predicted(results.probabilities["fused"])
    for video, row, column in zip(results.video_ids, results.labels.tolist(), columns.tolist(), strict=True):
        names = found.setdefault((row, len(results.classes) if column == metrics.NO_PREDICTION else column), [])
        if len(names) < EXAMPLES:
            names.append(visible(video))
    return found


def _matrix(results: Results) -> dict[str, Any]:
    """Cells that are not empty, with their strength, and the data that the page's script reads."""
    counts, examples = results.confusion(), _examples(results)
    totals = counts.sum(axis=1)
    cells = [
        {
            "row": row,
            "column": column,
            "count": int(counts[row, column]),
            # The root lifts the few percent that most confusions are above the ground's colour.
            "strength": max(1, round(STEPS * math.sqrt(counts[row, column] / totals[row]))),
        }
        for row, column in np.argwhere(counts[:, : len(results.classes)]).tolist()
    ]
    names = [visible(name) for name in results.classes]
    cell = float(np.clip(WIDTH / len(names), *CELL))
    letter = min(cell - 0.5, 12.0)
    return {
        "names": names,
        "cell": cell,
        "letter": letter,
        "margin": round(0.6 * letter * max(min(len(name), LABEL) for name in names)) + 12,
        "label": LABEL,
        "cells": cells,
        "data": {
            "names": names,
            "totals": totals.tolist(),
            "cells": {
                f"{row},{column}": [int(counts[row, column]), videos] for (row, column), videos in examples.items()
            },
        },
    }


def _pairs(results: Results) -> list[dict[str, Any]]:
    """The most frequent confusions, with example videos."""
    counts, examples = results.confusion()[:, : len(results.classes)], _examples(results)
    totals = counts.sum(axis=1)
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    pairs = [divmod(int(flat), wrong.shape[1]) for flat in order]
    return [
        {
            "true": visible(results.classes[row]),
            "predicted": visible(results.classes[column]),
            "count": int(wrong[row, column]),
            "share": wrong[row, column] / (totals[row] or 1),
            "examples": examples[row, column],
        }
        for row, column in pairs
        if wrong[row, column]
    ]


def _problems(results: Results) -> list[dict[str, Any]]:
    """Lists of videos that something is the matter with."""
    lists: tuple[tuple[str, Mapping[str, str]], ...] = (
        ("Test videos without features, counted as wrong", results.missing),
        ("Videos that could not be decoded", results.source.failed),
        ("Videos whose decoding is in doubt, used all the same", results.source.suspect),
    )
    return [
        {"title": title, "videos": [(visible(video), visible(reason)) for video, reason in sorted(reasons.items())]}
        for title, reasons in lists
    ]


def _provenance(results: Results, made: Made) -> list[dict[str, Any]]:
    """Groups of names and values: what made these figures."""
    return [
        {
            "title": "This report",
            "values": {
                "program": f"mrrn {made.version}",
                "made": made.date,
                "fusion": "0.7 high + 0.2 mid + 0.1 low (equation 10); plain mean beside it",
                "intervals": f"bootstrap over videos, {metrics.RESAMPLES:,} resamples, seed 0",
            },
        },
        {"title": "Features (what they depend on)", "values": _shown(results.source.identity)},
        {"title": "Features (where they were computed)", "values": _shown(results.source.environment)},
        *({"title": f"Run, {level} level", "values": _shown(own_fields(run))} for level, run in results.runs.items()),
    ]


def _commands(results: Results) -> list[str]:
    """What to type for the same figures; names are quoted, for they come from outside."""
    run, dataset = results.runs["high"], shlex.quote(f"DATASET={results.dataset}")
    subset = " SUBSET=1" if results.source.dataset.subset else ""
    options = f"SPLIT={results.split} POOL={results.pool} SEED={run.get('seed', 0)}"
    recipe = shlex.quote(f"RECIPE={run.get('recipe', 'paper')}")
    weights = "" if results.weights == "imagenet1k_v1" else f" {shlex.quote(f'WEIGHTS={results.weights}')}"
    return [
        visible(f"make extract {dataset}{subset}{weights}"),
        visible(f"make fuse {dataset} {options} {recipe}"),
    ]


def _shown(values: Mapping[str, Any]) -> dict[str, str]:
    return {visible(str(name)): visible(_value(value)) for name, value in values.items()}


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_value(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value))
    return str(value)
