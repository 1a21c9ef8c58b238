"""A split's report on disk: tables, figures and results.json, and report.html, whose values are put together here.

Shapes: N videos, K classes.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from cache.aggregate import NO_PREDICTION, predicted, wilson
from cache.common.progress import duration
from cache.common.text import visible
from cache.comparison import RESAMPLES, SEED
from cache.fingerprint import LEVELS
from fuse import paper
from fuse.against import comparisons, said
from fuse.calibration import reliability
from fuse.portions import by_group, by_length
from fuse.report.again import commands_of
from fuse.report.page import render, when
from fuse.report.samples import PAIRS, Frames, ShownPrediction, pictures_of
from fuse.report.story import how_good, references, trust, where_it_fails
from fuse.report.tables import Table
from fuse.report.timing import Timing
from fuse.results import MODELS, TITLES, Model, Results
from fuse.summary import Made

EXAMPLES: Final = 4
"""Videos named for a cell of the confusion matrix."""

STEPS: Final = 10
"""Strengths of colour in the confusion matrix."""

ORDERED: Final = 30
"""Classes above which the matrix has those beside one another that are confused, and the list of pairs comes first."""

FIRST: Final = 6
"""Mistakes on the first screen."""

GROUPS: Final = 12
"""Recordings listed, the worst first."""

Examples = dict[tuple[int, int], list[str]]
"""(Row, column) of the confusion matrix -> its first EXAMPLES videos."""


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What a report shows beside a split's results, as far as it was made."""

    mistakes: Sequence[ShownPrediction] = ()
    """The most confident first."""
    samples: Sequence[ShownPrediction] = ()
    frames: Frames = field(default_factory=dict)
    frames_note: str = ""
    """Which of these have no frames, and why."""
    timing: Timing | None = None
    """Figure 6."""
    sweeps: Mapping[str, Table] = field(default_factory=dict)
    """Tables 1 and 2, by their files' names."""


def html(results: Results, notes: Sequence[str], made: Made, extras: Extras) -> str:
    """The page."""
    noun = results.noun
    pictures = {video: pictures_of(each) for video, each in extras.frames.items()}
    examples = _examples(results, pictures)
    return render(
        "report.html",
        published=paper.DATASETS.get(results.dataset),
        heading=f"{paper.DATASETS.get(results.dataset, results.dataset)}, split {results.split}",
        notes=[note.partition(": ") if ": " in note[:30] else ("", "", note) for note in notes],
        made=made,
        results=results,
        titles=_titles(results),
        references=references(results),
        answers={
            "How good?": how_good(results),
            "Where does it fail?": where_it_fails(results),
            "Can it be trusted?": trust(results),
        },
        compared={
            f"{name} alone" if name in LEVELS else name: (compared, said(results, name))
            for name, compared in comparisons(results).items()
            if name not in MODELS or name in LEVELS
        },
        literature=[row for row in paper.TABLE_3 if row.accuracy(results.dataset) is not None],
        classes=_classes(results),
        matrix=_matrix(results, examples),
        pairs=_pairs(results, examples),
        mistakes=extras.mistakes,
        first=_first(extras.mistakes),
        wrong=int(results.confused().sum()),
        recognised=[each for each in extras.samples if each.right],
        frames_note=extras.frames_note,
        noun=noun,
        pictures=pictures,
        curves=_curves(results),
        reliability=_reliability(results),
        lengths=lengths if len(lengths := by_length(results)) > 1 else [],
        groups=[part for part in by_group(results) if part.right < part.videos][:GROUPS],
        cost=_cost(results),
        sweeps=list(extras.sweeps.values()),
        timing=extras.timing,
        problems={
            title: reasons
            for title, reasons in {
                f"Test {noun} without features, counted as wrong": results.missing,
                f"{noun.capitalize()} that could not be decoded": results.cache.failed,
                f"{noun.capitalize()} whose decoding is in doubt, still used": results.cache.suspect,
            }.items()
            if reasons
        },
        provenance=_provenance(results, made),
        commands=commands_of(results),
        bibtex=paper.BIBTEX,
    )


def _titles(results: Results) -> dict[Model, tuple[str, str]]:
    """Name and formula of each model that is shown."""
    titles = dict(TITLES)
    if weights := results.searched_weights:
        shares = " + ".join(f"{share:g} {level}" for level, share in weights.items())
        titles["searched"] = f"MRRN ({shares}, found on held-out training data)"
    parts = {model: titles[model].rstrip(")").partition(" (") for model in results.models}
    return {model: (name, formula) for model, (name, _, formula) in parts.items()}


def _first(mistakes: Sequence[ShownPrediction]) -> list[int]:
    """Places of up to FIRST mistakes, each another confusion as far as there are, the most confident first."""
    pairs = [(each.label, each.top[0][0]) for each in mistakes]
    return sorted(sorted(range(len(pairs)), key=lambda place: pairs.index(pairs[place]) != place)[:FIRST])


def _examples(results: Results, pictures: Collection[str]) -> Examples:
    """The cells' first videos, those with pictures before the others."""
    found: Examples = {}
    columns = predicted(results.probabilities["fused"])
    videos = zip(results.video_ids, results.labels.tolist(), columns.tolist(), strict=True)
    for video, row, column in sorted(videos, key=lambda each: each[0] not in pictures):
        names = found.setdefault((row, len(results.classes) if column == NO_PREDICTION else column), [])
        if len(names) < EXAMPLES:
            names.append(visible(video))
    return found


def _classes(results: Results) -> list[dict[str, Any]]:
    """The classes that have test videos, the worst first, then the others."""
    shares = {model: results.per_class(model).tolist() for model in MODELS}
    counts, rivals = results.confusion(), results.rivals()
    totals, right = counts.sum(axis=1).tolist(), counts.diagonal().tolist()
    rows = [
        {
            "name": name,
            "videos": totals[index],
            "interval": wilson(right[index], totals[index]),
            "rival": rivals[index],
            **{model: share[index] for model, share in shares.items()},
        }
        for index, name in enumerate(results.classes)
    ]
    return sorted(rows, key=lambda row: (not row["videos"], row["fused"], -row["videos"]))


def _order(results: Results) -> list[int]:
    """Classes that are tested or chosen, as the matrix has them: above ORDERED like ones beside one another.

    By the second eigenvector of the confusions' graph Laplacian, whose numbers are near for classes that are confused.
    """
    counts = results.confusion()
    there = np.flatnonzero(counts.sum(axis=1) + counts[:, :-1].sum(axis=0))
    if len(there) <= ORDERED:
        return there.tolist()
    wrong_KK = results.confused()[np.ix_(there, there)].astype(float)
    weights_KK = wrong_KK + wrong_KK.T + 1e-3
    _, vectors = np.linalg.eigh(np.diag(weights_KK.sum(axis=1)) - weights_KK)
    return there[np.argsort(vectors[:, 1], kind="stable")].tolist()


def _matrix(results: Results, examples: Examples) -> dict[str, Any]:
    """The cells of the confusion matrix that are not empty, and the data that the page's script reads."""
    counts, order = results.confusion(), _order(results)
    totals, place = counts.sum(axis=1), {number: index for index, number in enumerate(order)}
    cells = [
        {
            "row": place[row],
            "column": place[column],
            "count": int(counts[row, column]),
            # Most confusions are a few percent of their row; the root makes them visible.
            "opacity": max(1, round(STEPS * math.sqrt(counts[row, column] / totals[row]))) / STEPS,
        }
        for row, column in np.argwhere(counts[:, : len(results.classes)]).tolist()
    ]
    wrong_KK = results.confused()
    row, column = divmod(int(wrong_KK.argmax()), len(results.classes)) if wrong_KK.any() else (order[0], order[0])
    data = {
        "names": [visible(results.classes[number]) for number in order],
        "totals": totals[order].tolist(),
        "cells": {
            f"{place[row]},{place.get(column, len(order))}": [int(counts[row, column]), videos]
            for (row, column), videos in examples.items()
        },
        "first": [place[row], place[column]],
        "noun": results.noun,
    }
    return {"cells": cells, "data": data, "count": int(counts[row, column])}


def _pairs(results: Results, examples: Examples) -> list[dict[str, Any]]:
    """The most frequent confusions, with an example video."""
    wrong, totals = results.confused(), results.confusion()[:, : len(results.classes)].sum(axis=1)
    most = sorted(map(tuple, np.argwhere(wrong).tolist()), key=lambda cell: -wrong[cell])[:PAIRS]
    return [
        {
            "true": results.classes[row],
            "predicted": results.classes[column],
            "count": int(wrong[row, column]),
            "share": wrong[row, column] / totals[row],
            "example": examples[row, column][0],
        }
        for row, column in most
    ]


def _curves(results: Results) -> list[dict[str, Any]]:
    """For each level the points of its curves in a plot of 100 x 100 units: share of right clips and videos."""
    found = []
    for level, epochs in results.curves.items():
        if len(epochs) > 1:
            train, held = ([getattr(each, name) for each in epochs] for name in ("accuracy", "heldout_accuracy"))
            points = {"train": _polyline(train), "held": _polyline(held)}
            last = {"train": train[-1], "held": held[-1]}
            found.append({"level": level, "epochs": len(epochs), "points": points, "last": last})
    return found


def _polyline(shares: Sequence[float | None]) -> str:
    """A curve's points in a square of 100 units; y points down."""
    step = 100 / (len(shares) - 1)
    return " ".join(f"{step * x:.1f},{100 * (1 - y):.1f}" for x, y in enumerate(shares) if y is not None)


def _reliability(results: Results) -> dict[str, Any]:
    """Bins of the fused model's confidence, as it is and calibrated, with the calibration error of each."""
    kinds = {"as they are": results.probabilities["fused"], "calibrated": results.calibrated("fused")}
    return {name: reliability(each, results.labels) for name, each in kinds.items() if each is not None}


def _cost(results: Results) -> dict[str, str]:
    """What it took, as far as it was recorded."""
    cost, environment = results.cache.cost, results.cache.environment
    seconds = {level: sum(epoch.seconds for epoch in epochs) for level, epochs in results.curves.items()}
    found = {}
    if frames := cost.get("frames"):
        found["Features"] = f"{cost['videos']:,} videos, {frames:,} frames, {cost['bytes'] / 1e6:,.1f} MB"
        found["Computed on"] = f"{environment.get('device')}, {environment.get('precision')}"
        if spent := cost["decode_seconds"]:
            found["Decoding"] = (
                f"{duration(spent)} of all processes together, {frames / spent:,.0f} frames a second in each"
            )
    if sum(seconds.values()):
        each = ", ".join(f"{level} {duration(spent)}" for level, spent in seconds.items())
        found["Training"] = f"{duration(sum(seconds.values()))} ({each})"
    return found


def _provenance(results: Results, made: Made) -> list[dict[str, Any]]:
    """Groups of names and values that say what these figures were made with."""
    return [
        {
            "title": "This report",
            "values": {
                "program": f"mrrn {made.version}",
                "made": when(made.date),
                "fusion": "0.7 high + 0.2 mid + 0.1 low (equation 10); plain mean beside it",
                "intervals": "95 %; of one accuracy Wilson's, of a difference the paired bootstrap over "
                f"{results.noun} ({RESAMPLES:,} resamples, seed {SEED})",
            },
        },
        {"title": "Features (what they depend on)", "values": results.cache.identity},
        {"title": "Features (where they were computed)", "values": results.cache.environment},
        *({"title": f"Run, {level} level", "values": run} for level, run in results.runs.items()),
    ]
