"""Figures that several runs make up: the paper's Tables 1 and 2 from sweeps, and the mean over a dataset's splits.

Sweeps are those of `mrrn sweep --table 1` (or 2); splits count once their report is written.
"""

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from cache.common.errors import ScoreError
from cache.common.files import read_json
from cache.common.workspace import Workspace
from cache.dataset import SPLITS
from cache.fingerprint import LEVELS
from fuse import paper
from fuse.choice import RunChoice
from fuse.report.tables import Cell, Column, Table
from fuse.results import MODELS
from train.sweep.grid import TABLES

Accuracies = Mapping[tuple[str, str], Sequence[float]]
"""Setting and level -> the accuracy with each seed, a fraction."""

_SIZES: Final = re.compile(r"hidden (\d+), layers (\d+)")

_NUMBERS: Final = (
    Column(title="accuracy %", name="accuracy_percent", decimals=2),
    Column(title="± over seeds", name="deviation_points", decimals=2),
    Column(title="seeds", name="seeds"),
    Column(title="paper %", name="paper_percent", decimals=2),
    Column(title="difference", name="difference_points", decimals=2, signed=True),
)


def read_tables(
    workspace: Workspace, dataset: str, notes: Sequence[str], split: int, digest: str | None, *, subset: bool = False
) -> dict[str, Table]:
    """Tables 1 and 2, if their sweeps were made on this cache (`digest`): the paper's datasets beside its figures.

    A `subset` has no difference from them. Raises `ScoreError` if a sweep's results cannot be read.
    """
    made = {}
    for name, build in (("table1", _table_1), ("table2", _table_2)):
        if accuracies := _accuracies(workspace.sweep(dataset, name) / "results.json", split, digest):
            table = build(dataset, accuracies, tuple(notes))
            if dataset not in paper.DATASETS:
                table = replace(table, title=table.title.split(": ", 1)[1].capitalize())
            if subset:
                table = replace(table, rows=tuple((*row[:-1], None) for row in table.rows))
            made[name] = table
    return made


def _accuracies(path: Path, split: int, digest: str | None) -> Accuracies:
    """What a sweep found; empty if there is no such sweep of this split and cache."""
    try:
        value: dict[str, Any] = read_json(path)
        if value["holdout"] or value["cache_digest"] != {str(split): digest}:
            return {}
        return {(cell["setting"], cell["column"]): list(map(float, cell["accuracy"])) for cell in value["cells"]}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ScoreError(f"{path} is not a sweep's result: {error!r}; run the sweep again (`make sweep`)") from error


def _table_1(dataset: str, accuracies: Accuracies, notes: tuple[str, ...]) -> Table:
    printed = paper.TABLE_1 if dataset in paper.DATASETS else {}
    found = [tuple(map(int, match.groups())) for setting, _ in accuracies if (match := _SIZES.fullmatch(setting))]
    rows = [
        (
            hidden,
            layers,
            *_numbers(accuracies.get((f"hidden {hidden}, layers {layers}", "high")), printed.get((hidden, layers))),
        )
        for hidden, layers in printed or found
    ]
    if printed and dataset != "hmdb51":
        notes = (*notes, "The paper has this table for HMDB-51 only; its figures stand beside ours for orientation.")
    columns = (Column(title="hidden units", name="hidden"), Column(title="layers", name="layers"), *_NUMBERS)
    return Table(title="Table 1: hidden units and layers, high level", notes=notes, columns=columns, rows=tuple(rows))


def _table_2(dataset: str, accuracies: Accuracies, notes: tuple[str, ...]) -> Table:
    rows = [
        (pool, level, *_numbers(accuracies.get((f"pool {pool}", level)), printed.get(level)))
        for pool in TABLES["2"]["pool"]
        for printed in [paper.TABLE_2.get((dataset, pool), {})]
        for level in LEVELS
    ]
    columns = (Column(title="pooling", name="pool"), Column(title="level", name="level"), *_NUMBERS)
    return Table(title="Table 2: levels and temporal pooling", notes=notes, columns=columns, rows=tuple(rows))


def _numbers(accuracies: Sequence[float] | None, printed: float | None) -> tuple[Cell, ...]:
    """Cells of `_NUMBERS`: mean, deviation over seeds, number of seeds, the paper's figure, difference from it."""
    if not accuracies:
        return (None, None, None, printed, None)
    mean = 100 * statistics.fmean(accuracies)
    deviation = 100 * statistics.stdev(accuracies) if len(accuracies) > 1 else None
    return (mean, deviation, len(accuracies), printed, None if printed is None else mean - printed)


def mean_over_splits(choice: RunChoice) -> str:
    """A line with each model's mean accuracy over the splits with a report of the same kind of runs and cache.

    Empty if no other one is. Raises `ScoreError` if a report cannot be read.
    """
    found = {}
    for split in SPLITS:
        path = choice.workspace.report(choice.dataset, split) / "results.json"
        try:
            report: dict[str, Any] = read_json(path)
            run = report["runs"]["high"]
            kind = [report["fingerprint"], report["pool"], *map(run.get, ("seed", "recipe", "variant"))]
            found[split] = kind, {model: float(report["accuracy"][model]) for model in MODELS}
        except FileNotFoundError:
            continue
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ScoreError(f"{path} is not a report's result: {error!r}; make that report again") from error
    alike = {split: accuracy for split, (kind, accuracy) in found.items() if kind == found[choice.split][0]}
    if len(alike) < 2:
        return ""
    means = {model: statistics.fmean(accuracy[model] for accuracy in alike.values()) for model in MODELS}
    splits = ", ".join(map(str, alike))
    return f"mean over splits {splits}: " + ", ".join(f"{model} {100 * mean:.2f} %" for model, mean in means.items())
