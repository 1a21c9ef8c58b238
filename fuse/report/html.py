"""A split's report on disk: tables, figures and results.json, and report.html, whose values are put together here.

The page is one file that needs no network and runs no code but its own: the templates escape every value, and a
content-security policy allows exactly the script and the style sheet in the file, by hash. Shapes: N videos, K classes.
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
from cache.common.files import discard_leftovers, write_bytes_durably, write_sealed_json
from cache.common.text import shortened, visible
from extract.settings import IMAGENET
from fuse import metrics, paper
from fuse.report.figures import draw_confusion, draw_per_class
from fuse.report.samples import Frames, ShownPrediction, data_uris, draw_samples
from fuse.report.tables import NONE, Table, per_class_table, table_3, to_csv, to_markdown
from fuse.report.timing import Timing, draw_timing
from fuse.results import MODELS, PAPER_RECIPE, TITLES, Made, Model, Results, summarise

EXAMPLES: Final = 4
"""Videos named for a cell of the confusion matrix."""

PAIRS: Final = 20
"""Confusions listed, the most frequent first."""

STEPS: Final = 10
"""Strengths of colour in the confusion matrix."""

Examples = dict[tuple[int, int], list[str]]
"""(Row, column) of the confusion matrix -> its first EXAMPLES videos."""


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What a report shows beside a split's results, as far as it was made."""

    samples: Sequence[ShownPrediction] = ()
    frames: Frames = field(default_factory=dict)
    timing: Timing | None = None
    """Figure 6."""
    sweeps: Mapping[str, Table] = field(default_factory=dict)
    """Tables 1 and 2, by their files' names."""


def publish(folder: Path, results: Results, notes: Sequence[str], made: Made, extras: Extras) -> Path:
    """Write the page, tables, figures and results.json into `folder`; returns the path of the page.

    A reader finds each file old or new, never half; results.json is written last and so stands for a whole report.
    """
    tables = {**extras.sweeps, "table3": table_3(results, notes), "per_class": per_class_table(results, notes)}
    contents = {
        **{f"{name}.csv": to_csv(table).encode() for name, table in tables.items()},
        **{f"{name}.md": to_markdown(table).encode() for name, table in tables.items()},
        **draw_confusion(results, notes),
        **draw_per_class(results, notes),
        **(draw_samples(results, extras.samples, extras.frames, notes) if extras.samples else {}),
        **(draw_timing(extras.timing) if extras.timing else {}),
        "report.html": html(results, notes, made, extras).encode(),
    }
    if folder.exists():
        discard_leftovers(folder)
    for name, content in contents.items():
        write_bytes_durably(folder / name, content)
    write_sealed_json(folder / "results.json", summarise(results, notes, made))
    return folder / "report.html"


def html(results: Results, notes: Sequence[str], made: Made, extras: Extras) -> str:
    """The page. Every value that the templates write out is made visible, then escaped."""
    style, script = _asset("report.css"), _asset("report.js")
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    environment = Environment(
        loader=PackageLoader("fuse.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else visible(str(value)),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": _percent,
        "points": _points,
        "count": "{:,}".format,
        "shorten": shortened,
        "text": _text,
    }
    examples = _examples(results)
    return environment.get_template("report.html").render(
        style=Markup(style),
        script=Markup(script),
        policy=policy,
        heading=f"{paper.DATASETS.get(results.dataset, results.dataset)}, split {results.split}",
        notes=list(notes),
        made=made,
        results=results,
        titles=_titles(results),
        fused_against_high=results.against("high"),
        literature=[row for row in paper.TABLE_3 if row.accuracy(results.dataset) is not None],
        shares={model: results.per_class(model).tolist() for model in MODELS},
        matrix=_matrix(results, examples),
        pairs=_pairs(results, examples),
        samples=extras.samples,
        pictures=data_uris(extras.frames),
        sweeps=list(extras.sweeps.values()),
        timing=extras.timing,
        problems={
            "Test videos without features, counted as wrong": results.missing,
            "Videos that could not be decoded": results.cache.failed,
            "Videos whose decoding is in doubt, still used": results.cache.suspect,
        },
        provenance=_provenance(results, made),
        commands=_commands(results),
    )


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


def _titles(results: Results) -> dict[Model, tuple[str, str]]:
    """Name and formula of each model that is shown."""
    titles = dict(TITLES)
    if weights := results.searched_weights:
        shares = " + ".join(f"{share:g} {level}" for level, share in weights.items())
        titles["searched"] = f"MRRN ({shares}, found on held-out training videos)"
    parts = {model: titles[model].rstrip(")").partition(" (") for model in results.models}
    return {model: (name, formula) for model, (name, _, formula) in parts.items()}


def _examples(results: Results) -> Examples:
    found: Examples = {}
    columns = predicted(results.probabilities["fused"])
    for video, row, column in zip(results.video_ids, results.labels.tolist(), columns.tolist(), strict=True):
        names = found.setdefault((row, len(results.classes) if column == NO_PREDICTION else column), [])
        if len(names) < EXAMPLES:
            names.append(visible(video))
    return found


def _matrix(results: Results, examples: Examples) -> dict[str, Any]:
    """The cells of the confusion matrix that are not empty, and the data that the page's script reads."""
    counts = results.confusion()
    totals = counts.sum(axis=1)
    cells = [
        {
            "row": row,
            "column": column,
            "count": int(counts[row, column]),
            # Most confusions are a few percent of their row; the root makes them visible.
            "strength": max(1, round(STEPS * math.sqrt(counts[row, column] / totals[row]))),
        }
        for row, column in np.argwhere(counts[:, : len(results.classes)]).tolist()
    ]
    data = {
        "names": list(map(visible, results.classes)),
        "totals": totals.tolist(),
        "cells": {f"{row},{column}": [int(counts[row, column]), videos] for (row, column), videos in examples.items()},
    }
    return {"cells": cells, "data": data}


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


def _provenance(results: Results, made: Made) -> list[dict[str, Any]]:
    """Groups of names and values that say what these figures were made with."""
    return [
        {
            "title": "This report",
            "values": {
                "program": f"mrrn {made.version}",
                "made": made.date,
                "fusion": "0.7 high + 0.2 mid + 0.1 low (equation 10); plain mean beside it",
                "intervals": "95 %; of one accuracy Wilson's, of a difference the paired bootstrap over videos "
                f"({metrics.RESAMPLES:,} resamples, seed {metrics.SEED})",
            },
        },
        {"title": "Features (what they depend on)", "values": results.cache.identity},
        {"title": "Features (where they were computed)", "values": results.cache.environment},
        *({"title": f"Run, {level} level", "values": run} for level, run in results.runs.items()),
    ]


def _commands(results: Results) -> list[str]:
    """Shell commands that make the same figures; names are quoted, because they come from outside."""
    run, dataset = results.runs["high"], shlex.quote(f"DATASET={results.dataset}")
    subset = " SUBSET=1" if results.cache.dataset.subset else ""
    options = f"SPLIT={results.split} POOL={results.pool} SEED={run.get('seed', 0)}"
    recipe = shlex.quote(f"RECIPE={run.get('recipe', PAPER_RECIPE)}")
    weights = "" if results.weights == IMAGENET else f" {shlex.quote(f'WEIGHTS={results.weights}')}"
    watch = " WATCH=1" if run.get("watch") else ""
    return [f"make extract {dataset}{subset}{weights}", f"make fuse {dataset} {options} {recipe}{watch}"]


def _text(value: Any) -> str:
    """A setting's value, of mappings and lists each item."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(inner)}" for name, inner in value.items())
    return ", ".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)
