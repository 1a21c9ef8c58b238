"""What report.html shows, as plain values in reading order; names made visible, nothing escaped yet.

Shapes: N videos, K classes.

report.html: one file that needs no network and runs no code but its own.

The page's data meets the templates with autoescape on and a content-security policy that allows exactly the script and
the style sheet that stand in the file, by hash.

Write one split's report: page, tables, figures, and results.json last, each file replaced at once.
"""

import base64
import hashlib
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cache.aggregate import NO_PREDICTION, predicted
from cache.common.files import write_bytes_durably, write_json_durably
from cache.common.text import shortened, visible
from fuse import metrics, paper
from fuse.report.figures import draw_confusion, draw_per_class
from fuse.report.samples import Frames, Sample, draw_samples
from fuse.report.samples import for_page as samples_for_page
from fuse.report.tables import NONE, Table, per_class_table, table_3, to_csv, to_markdown
from fuse.report.timing import Timing, draw_timing
from fuse.report.timing import for_page as timing_for_page
from fuse.results import MODELS, TITLES, Made, Model, Results, fused_against_high, own_fields, summarise

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
    columns = predicted(results.probabilities["fused"])
    for video, row, column in zip(results.video_ids, results.labels.tolist(), columns.tolist(), strict=True):
        names = found.setdefault((row, len(results.classes) if column == NO_PREDICTION else column), [])
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


def render(page: Mapping[str, Any]) -> str:
    """The page as HTML; `page` comes from `fuse.report.html.page_of`."""
    style, script = _asset("report.css"), _asset("report.js")
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    environment = Environment(
        loader=PackageLoader("fuse.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "points": _points, "count": _count, "shorten": shortened}
    template = environment.get_template("report.html")
    return template.render(**page, style=Markup(style), script=Markup(script), policy=policy)


def _asset(name: str) -> str:
    return (files("fuse.report") / "templates" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _percent(fraction: float | None, decimals: int = 1) -> str:
    """A fraction as percent, without the sign."""
    return NONE if fraction is None or fraction != fraction else f"{100 * fraction:.{decimals}f}"


def _points(fraction: float | None, decimals: int = 1) -> str:
    """A difference of fractions in points, with a true minus."""
    return NONE if fraction is None else f"{100 * fraction:+.{decimals}f}".replace("-", "−")


def _count(number: int) -> str:
    """A count with thousands set apart."""
    return f"{number:,}"


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What a report shows beside a split's results, as far as it was made."""

    samples: Sequence[Sample] = ()
    frames: Frames = field(default_factory=dict)
    timing: Timing | None = None
    """Figure 6."""
    sweeps: Mapping[str, Table] = field(default_factory=dict)
    """Tables 1 and 2, by their files' names."""


def publish(folder: Path, results: Results, notes: Sequence[str], made: Made, extras: Extras) -> Path:
    """Write all outputs into `folder` and return the path of the page.

    A reader finds each file old or new, never half; results.json is written last and so stands for a whole report.
    """
    tables = {**extras.sweeps, "table3": table_3(results, notes), "per_class": per_class_table(results, notes)}
    files = {
        **{f"{name}.csv": to_csv(table).encode() for name, table in tables.items()},
        **{f"{name}.md": to_markdown(table).encode() for name, table in tables.items()},
        **draw_confusion(results, notes),
        **draw_per_class(results, notes),
        **(draw_samples(results, extras.samples, extras.frames, notes) if extras.samples else {}),
        **(draw_timing(extras.timing) if extras.timing else {}),
        "report.html": html(results, notes, made, extras).encode(),
    }
    for name, content in files.items():
        write_bytes_durably(folder / name, content)
    write_json_durably(folder / "results.json", summarise(results, notes, made))
    return folder / "report.html"


def html(results: Results, notes: Sequence[str], made: Made, extras: Extras) -> str:
    """The page."""
    shown = {
        "samples": samples_for_page(extras.samples, extras.frames, results.classes),
        "timing": timing_for_page(extras.timing) if extras.timing else None,
        "sweeps": list(extras.sweeps.values()),
    }
    return render({**page_of(results, notes, made), **shown})
