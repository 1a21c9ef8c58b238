"""The paper's Tables 1 and 2 from the sweeps that `python -m train sweep --table` has made."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from cache.common.errors import ScoreError
from cache.common.workspace import Workspace
from cache.fingerprint import LEVELS
from fuse import paper
from fuse.report.tables import Cell, Column, Table, percent

_POOLS: Final = ("mean", "max")

_NUMBERS: Final = (
    Column(title="accuracy %", name="accuracy_percent", decimals=2),
    Column(title="± over seeds", name="deviation_points", decimals=2),
    Column(title="seeds", name="seeds"),
    Column(title="paper %", name="paper_percent", decimals=2),
    Column(title="difference", name="difference_points", decimals=2, signed=True),
)


def read_tables(
    workspace: Workspace, dataset: str, notes: Sequence[str], split: int, digest: str | None
) -> dict[str, Table]:
    """Tables 1 and 2, each beside the paper's figures, as far as their sweeps were made on this cache (`digest`)."""
    made = {}
    for name, build in (("table1", _table_1), ("table2", _table_2)):
        accuracies = _accuracies(workspace.sweep(dataset, name), split, digest)
        if accuracies:
            made[name] = build(dataset, accuracies, tuple(notes))
    return made


Accuracies = dict[tuple[str, str], list[float]]
"""Setting and level -> the accuracy with each seed, as a fraction."""


def _accuracies(folder: Path, split: int, digest: str | None) -> Accuracies:
    """What a sweep found; empty where there is no such sweep of this split and cache."""
    path = folder / "results.json"
    try:
        value: dict[str, Any] = json.loads(path.read_bytes())
        if value["holdout"] or value["cache_digest"] != {str(split): digest}:
            return {}
        return {(cell["setting"], cell["column"]): list(map(float, cell["accuracy"])) for cell in value["cells"]}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ScoreError(f"{path} is not a sweep's result: {error!r}; run the sweep again (`make sweep`)") from error


def _table_1(dataset: str, accuracies: Accuracies, notes: tuple[str, ...]) -> Table:
    rows = [
        (hidden, layers, *_numbers(accuracies.get((f"hidden {hidden}, layers {layers}", "high")), published))
        for (hidden, layers), published in paper.TABLE_1.items()
    ]
    if dataset != "hmdb51":
        notes = (*notes, "The paper has this table for HMDB-51 only; its figures stand beside ours for orientation.")
    columns = (Column(title="hidden units", name="hidden"), Column(title="layers", name="layers"), *_NUMBERS)
    return Table(title="Table 1: hidden units and layers, high level", notes=notes, columns=columns, rows=tuple(rows))


def _table_2(dataset: str, accuracies: Accuracies, notes: tuple[str, ...]) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (
            pool,
            level,
            *_numbers(accuracies.get((f"pool {pool}", level)), paper.TABLE_2.get((dataset, pool), {}).get(level)),
        )
        for pool in _POOLS
        for level in LEVELS
    ]
    columns = (Column(title="pooling", name="pool"), Column(title="level", name="level"), *_NUMBERS)
    return Table(title="Table 2: levels and temporal pooling", notes=notes, columns=columns, rows=tuple(rows))


def _numbers(accuracies: list[float] | None, published: float | None) -> tuple[Cell, ...]:
    """Mean, deviation over seeds, number of seeds, the paper's figure, difference to it."""
    if not accuracies:
        return (None, None, None, published, None)
    mean = percent(statistics.fmean(accuracies))
    deviation = percent(statistics.stdev(accuracies)) if len(accuracies) > 1 else None
    return (mean, deviation, len(accuracies), published, None if published is None else mean - published)
