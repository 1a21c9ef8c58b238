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
from cache.common.files import write_bytes_durably, write_json_durably
from cache.common.text import shortened, visible
from extract.settings import IMAGENET
from fuse import metrics, paper
from fuse.report.figures import draw_confusion, draw_per_class
from fuse.report.samples import Frames, Sample, draw_samples
from fuse.report.samples import for_page as samples_for_page
from fuse.report.tables import NONE, Table, per_class_table, table_3, to_csv, to_markdown
from fuse.report.timing import Timing, draw_timing
from fuse.report.timing import for_page as timing_for_page
from fuse.results import MODELS, PAPER_RECIPE, TITLES, Made, Model, Results, fused_against_high, summarise

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
    for name, content in contents.items():
        write_bytes_durably(folder / name, content)
    write_json_durably(folder / "results.json", summarise(results, notes, made))
    return folder / "report.html"


def html(results: Results, notes: Sequence[str], made: Made, extras: Extras) -> str:
    """The page, of values as plain as JSON: names are made visible here, and escaped by the templates."""
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
    environment.filters |= {"percent": _percent, "points": _points, "count": "{:,}".format, "shorten": shortened}
    return environment.get_template("report.html").render(
        style=Markup(style),
        script=Markup(script),
        policy=policy,
        heading=f"{paper.DATASETS.get(results.dataset, results.dataset)}, split {results.split}",
        notes=list(notes),
        made=made,
        pool=results.pool,
        videos=len(results.video_ids),
        clips=results.clips,
        right=int(results.correct["fused"].sum()),
        models=[_model(results, model) for model in results.models],
        fused_against_high=fused_against_high(results),
        literature=_literature(results),
        classes=_classes(results),
        matrix=_matrix(results),
        pairs=_pairs(results),
        samples=samples_for_page(extras.samples, extras.frames, results.classes),
        sweeps=list(extras.sweeps.values()),
        timing=timing_for_page(extras.timing) if extras.timing else None,
        problems=_problems(results),
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


def _model(results: Results, model: Model) -> dict[str, Any]:
    """A row of the table of models; accuracies are fractions."""
    interval, accuracy, printed = results.interval(model), results.accuracy(model), results.paper[model]
    name, _, formula = TITLES[model].rstrip(")").partition(" (")
    if model == "searched" and results.searched_weights:
        shares = " + ".join(f"{share:g} {level}" for level, share in results.searched_weights.items())
        formula = f"{shares}, found on held-out training videos"
    return {
        "key": model,
        "title": name,
        "formula": formula,
        "accuracy": accuracy,
        "low": interval.low,
        "high": interval.high,
        "top5": results.top5(model),
        "paper": None if printed is None else printed / 100,
        "difference": None if printed is None else accuracy - printed / 100,
    }


def _literature(results: Results) -> list[dict[str, Any]]:
    """The paper's Table 3 for this dataset, in its order."""
    rows = [(row, row.accuracy(results.dataset)) for row in paper.TABLE_3]
    return [
        {"model": row.model, "inputs": row.inputs, "accuracy": value / 100} for row, value in rows if value is not None
    ]


def _classes(results: Results) -> list[dict[str, Any]]:
    """Each class's videos, accuracy by each model, and the class that it is most often taken for."""
    videos = results.confusion().sum(axis=1).tolist()
    shares = {model: results.per_class(model) for model in MODELS}
    return [
        {
            "name": visible(name),
            "videos": videos[index],
            "shares": {model: float(shares[model][index]) for model in MODELS},
            "rival": rival and {"name": visible(rival[0]), "times": rival[1]},
        }
        for index, (name, rival) in enumerate(zip(results.classes, results.rivals(), strict=True))
    ]


def _examples(results: Results) -> dict[tuple[int, int], list[str]]:
    """The first EXAMPLES videos of each cell (row, column) of the confusion matrix."""
    found: dict[tuple[int, int], list[str]] = {}
    columns = predicted(results.probabilities["fused"])
    for video, row, column in zip(results.video_ids, results.labels.tolist(), columns.tolist(), strict=True):
        names = found.setdefault((row, len(results.classes) if column == NO_PREDICTION else column), [])
        if len(names) < EXAMPLES:
            names.append(visible(video))
    return found


def _matrix(results: Results) -> dict[str, Any]:
    """The confusion matrix: its cells that are not empty, its measures, and the data that the page's script reads."""
    counts, examples = results.confusion(), _examples(results)
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
    wrong, examples = results.confused(), _examples(results)
    totals = results.confusion()[:, : len(results.classes)].sum(axis=1)
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
    """Videos that are missing, failed or suspect, with the reasons."""
    lists: tuple[tuple[str, Mapping[str, str]], ...] = (
        ("Test videos without features, counted as wrong", results.missing),
        ("Videos that could not be decoded", results.cache.failed),
        ("Videos whose decoding is in doubt, still used", results.cache.suspect),
    )
    return [
        {"title": title, "videos": [(visible(video), visible(reason)) for video, reason in sorted(reasons.items())]}
        for title, reasons in lists
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
                "intervals": f"bootstrap over videos, {metrics.RESAMPLES:,} resamples, seed 0",
            },
        },
        {"title": "Features (what they depend on)", "values": _shown(results.cache.identity)},
        {"title": "Features (where they were computed)", "values": _shown(results.cache.environment)},
        *({"title": f"Run, {level} level", "values": _shown(run)} for level, run in results.runs.items()),
    ]


def _commands(results: Results) -> list[str]:
    """Shell commands that make the same figures; names are quoted, because they come from outside."""
    run, dataset = results.runs["high"], shlex.quote(f"DATASET={results.dataset}")
    subset = " SUBSET=1" if results.cache.dataset.subset else ""
    options = f"SPLIT={results.split} POOL={results.pool} SEED={run.get('seed', 0)}"
    recipe = shlex.quote(f"RECIPE={run.get('recipe', PAPER_RECIPE)}")
    weights = "" if results.weights == IMAGENET else f" {shlex.quote(f'WEIGHTS={results.weights}')}"
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
