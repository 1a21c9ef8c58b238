"""Figures that several runs make up: Tables 1 and 2 from sweeps, and the mean over splits."""

import json
from pathlib import Path
from typing import Any

import pytest

from cache.common.errors import ScoreError
from cache.common.workspace import Workspace
from fuse.choice import RunChoice
from fuse.report.sweeps import mean_over_splits, read_tables
from fuse.report.tables import to_markdown, to_text
from fuse.summary import summarise
from tests.helpers.scores import MADE, results_of_a_subset

DIGEST = "c0ffee"


def write_sweep(
    workspace: Workspace, name: str, cells: dict[tuple[str, str], list[float]], dataset: str = "hmdb51", **changes: Any
) -> None:
    value = {
        "holdout": False,
        "cache_digest": {"1": DIGEST},
        "cells": [
            {"setting": setting, "column": column, "accuracy": accuracy, "text": ""}
            for (setting, column), accuracy in cells.items()
        ],
    }
    path = workspace.sweep(dataset, name) / "results.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**value, **changes}))


def test_table_1_stands_beside_the_papers(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    write_sweep(workspace, "table1", {("hidden 1024, layers 3", "high"): [0.50, 0.52]})
    table = read_tables(workspace, "hmdb51", ["note"], 1, DIGEST)["table1"]
    rows = {row[:2]: row[2:] for row in table.rows}
    assert len(rows) == 9
    mean, deviation, seeds, paper, difference = rows[1024, 3]
    assert (mean, seeds, paper) == (pytest.approx(51.0), 2, 50.78)
    assert deviation == pytest.approx(2**0.5)
    assert difference == pytest.approx(0.22)
    assert rows[256, 5] == (None, None, None, 43.92, None)
    assert table.notes == ("note",)


def test_own_data_has_its_own_sizes_and_nothing_of_the_paper(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    cells = {(f"hidden {hidden}, layers 1", "high"): [0.5] for hidden in (32, 64)}
    write_sweep(workspace, "table1", {**cells, ("recipe linear", "high"): [0.5]}, dataset="mine")
    table = read_tables(workspace, "mine", [], 1, DIGEST)["table1"]
    assert table.title == "Hidden units and layers, high level"
    assert [row[:2] for row in table.rows] == [(32, 1), (64, 1)]
    assert "paper" not in to_markdown(table).lower() + to_text(table).lower()


def test_a_subset_has_no_difference_from_the_paper(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    write_sweep(workspace, "table1", {("hidden 1024, layers 3", "high"): [0.50, 0.52]})
    table = read_tables(workspace, "hmdb51", [], 1, DIGEST, subset=True)["table1"]
    assert "difference" not in to_text(table)
    assert "50.78" in to_text(table)


def test_table_2_has_levels_and_poolings(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    write_sweep(workspace, "table2", {("pool max", "low"): [0.25]})
    table = read_tables(workspace, "hmdb51", [], 1, DIGEST)["table2"]
    rows = {row[:2]: row[2:] for row in table.rows}
    assert rows["max", "low"][:2] == (25.0, None)
    assert rows["max", "low"][3] == 25.36
    assert rows["mean", "high"][3] == 50.78


@pytest.mark.parametrize(
    "changes", [{"cache_digest": {"1": "older"}}, {"cache_digest": {"2": DIGEST}}, {"holdout": True}]
)
def test_a_sweep_of_another_cache_split_or_half_is_not_shown(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_sweep(Workspace(tmp_path), "table2", {("pool max", "low"): [0.25]}, **changes)
    assert read_tables(Workspace(tmp_path), "hmdb51", [], 1, DIGEST) == {}


def test_a_damaged_sweep_is_an_error(tmp_path: Path) -> None:
    path = Workspace(tmp_path).sweep("hmdb51", "table1") / "results.json"
    path.parent.mkdir(parents=True)
    path.write_text("[1]")
    with pytest.raises(ScoreError, match="is not a sweep's result"):
        read_tables(Workspace(tmp_path), "hmdb51", [], 1, DIGEST)


def test_the_mean_over_splits_needs_two_reports_of_one_cache(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    choice = RunChoice(workspace=workspace, dataset="ucf101")
    summary = summarise(results_of_a_subset(), [], MADE)

    def write(split: int, **changes: Any) -> None:
        path = workspace.report("ucf101", split) / "results.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**summary, "split": split, **changes}))

    write(1, accuracy={**summary["accuracy"], "fused": 0.5})
    assert mean_over_splits(choice) == ""
    write(2, accuracy={**summary["accuracy"], "fused": 1.0})
    assert "mean over splits 1, 2: " in mean_over_splits(choice)
    assert "fused 75.00 %" in mean_over_splits(choice)
    write(2, fingerprint={})
    assert mean_over_splits(choice) == ""
    write(2, runs={"high": {**summary["runs"]["high"], "variant": "l4"}})
    assert mean_over_splits(choice) == ""


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"pool": "mean", "runs": {"high": 1}}'])
def test_a_damaged_report_of_another_split_is_an_error(tmp_path: Path, content: str) -> None:
    choice = RunChoice(workspace=Workspace(tmp_path), dataset="ucf101")
    path = choice.workspace.report("ucf101", 2) / "results.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(ScoreError, match="is not a report's result"):
        mean_over_splits(choice)
