"""What a report shows beside a split's scores: sweeps, times, samples, searched weights, the mean over splits."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.common.errors import ScoreError, TrainingError
from cache.common.workspace import Workspace
from cache.fingerprint import LEVELS
from cache.scores import write_scores
from fuse import reproduce
from fuse.report.html import Extras, html
from fuse.report.samples import choose_samples, draw_samples, for_page
from fuse.report.sweeps import mean_over_splits, read_tables
from fuse.report.tables import table_3, to_text
from fuse.report.timing import Timed, draw_timing, read_timing
from fuse.results import caveats, evaluate, summarise
from fuse.scores import RunChoice, searched_weights
from tests.helpers.scores import (
    HAND_WORKED,
    LABELS,
    MADE,
    hand_worked_tables,
    made_up_results,
    make_scored_cache,
    make_table,
    results_of_a_subset,
)
from tests.helpers.train import trainable_cache
from train.config import write_config
from train.recipes import RECIPES
from train.split import open_split

DIGEST = "c0ffee"


def write_sweep(workspace: Workspace, name: str, cells: dict[tuple[str, str], list[float]], **changes: Any) -> None:
    value = {
        "holdout": False,
        "cache_digest": {"1": DIGEST},
        "cells": [
            {"setting": setting, "column": column, "accuracy": accuracy, "text": ""}
            for (setting, column), accuracy in cells.items()
        ],
    }
    path = workspace.sweep("hmdb51", name) / "results.json"
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


def write_times(path: Path, *models: Timed) -> Path:
    value = {
        "device": "<GPU>",
        "date": "2026-01-02",
        "notes": ["C3D is left out."],
        "models": [vars(each) for each in models],
    }
    path.write_text(json.dumps(value))
    return path


def test_times_are_drawn_and_shown_quickest_first(tmp_path: Path) -> None:
    slow, quick = Timed("slow", False, 4, 30, 2.5, 100, "all"), Timed("quick", True, 10, 30, 0.0125, 100, "head")
    timing = read_timing(write_times(tmp_path / "times.json", slow, quick))
    assert timing is not None
    assert [each.model for each in timing.models] == ["quick", "slow"]
    assert set(draw_timing(timing)) == {"timing.svg", "timing.png", "timing-dark.svg", "timing-dark.png"}
    results = made_up_results(["a", "b"], 8)
    page = html(results, caveats(results), MADE, Extras(timing=timing))
    assert "12.5 ms" in page
    assert "2.50 s" in page
    assert "&lt;GPU&gt;" in page


def test_times_that_are_none(tmp_path: Path) -> None:
    assert read_timing(tmp_path / "gone.json") is None
    (tmp_path / "odd.json").write_text("{}")
    with pytest.raises(ScoreError, match=r"is not a measurement of benchmarks/figure6\.py"):
        read_timing(tmp_path / "odd.json")


def test_samples_are_right_and_wrong_ones_of_different_classes() -> None:
    results = made_up_results([f"class {index}" for index in range(40)], 400)
    samples = choose_samples(results)
    assert [sample.right for sample in samples] == [True] * 4 + [False] * 4
    assert len({sample.label for sample in samples[:4]}) == 4
    index = {video: number for number, video in enumerate(results.video_ids)}
    for sample in samples:
        probabilities = results.probabilities["fused"][index[sample.video]]
        assert sample.top[0][1] == probabilities.max()
        assert sample.label in dict(sample.top)
    assert samples == choose_samples(results)


def test_samples_of_nothing_right_or_wrong() -> None:
    results = evaluate(hand_worked_tables(), make_scored_cache(LABELS), 1)
    samples = choose_samples(results)
    assert [sample.right for sample in samples] == [True, True]
    frames = {samples[0].video: np.zeros((3, 30, 40, 3), np.uint8)}
    shown = for_page(samples, frames, results.classes)
    assert [len(each["frames"]) for each in shown] == [3, 0]
    assert set(draw_samples(results, samples, frames, [])) == {
        f"samples{theme}.{kind}" for theme in ("", "-dark") for kind in ("svg", "png")
    }


def test_weights_are_searched_on_held_out_videos_alone(tmp_path: Path) -> None:
    choice = RunChoice(workspace=Workspace(tmp_path), dataset="tiny")
    assert searched_weights(choice, hand_worked_tables()) is None
    labels = {f"train/{number}": number % 2 for number in range(6)}
    for level in LEVELS:
        sure = 0.9 if level == "mid" else 0.1
        clips = {video: [(sure, 1 - sure) if label == 0 else (1 - sure, sure)] for video, label in labels.items()}
        write_scores(choice.folder(level, holdout=True) / "heldout-scores.npz", make_table(level, clips, labels))
    weights = searched_weights(choice, hand_worked_tables())
    assert weights is not None
    assert weights["mid"] == 1.0
    results = evaluate(hand_worked_tables(), make_scored_cache(LABELS), 1, weights)
    assert results.accuracy("searched") == results.accuracy("mid") == 1.0
    summary = summarise(results, [], MADE)
    assert summary["searched"] == {"fusion_weights": weights, "accuracy": 1.0}
    assert set(summary["accuracy"]) == {"low", "mid", "high", "fused", "mean"}
    assert "weights found on held-out training videos" in to_text(table_3(results, []))
    assert "1 mid" in html(results, [], MADE, Extras())


def test_held_out_scores_of_test_videos_or_of_another_cache_are_refused(tmp_path: Path) -> None:
    choice = RunChoice(workspace=Workspace(tmp_path), dataset="tiny")
    for level in LEVELS:
        path = choice.folder(level, holdout=True) / "heldout-scores.npz"
        write_scores(path, make_table(level, HAND_WORKED[level], LABELS, cache_digest="other"))
    with pytest.raises(ScoreError, match=r"cache digest: test 'c0ffee', held-out 'other'; a/one"):
        searched_weights(choice, hand_worked_tables())


def test_another_recipes_runs_are_found_by_its_name(tmp_path: Path) -> None:
    choice = RunChoice(workspace=Workspace(tmp_path), dataset="tiny", recipe="paper")
    assert choice.folder("low").name == "low-mean-seed0-paper"
    assert choice.folder("low", holdout=True).name == "low-mean-seed0-paper-holdout"
    trainable_cache(tmp_path)
    paper = RECIPES["paper"]
    for holdout in (False, True):
        config = open_split(choice.workspace, "tiny", 1).config(
            level="low", pool="mean", seed=0, recipe=paper, usual=paper, holdout=holdout
        )
        write_config(config.folder(choice.workspace), config, "finished")
        assert choice.folder("low", holdout=holdout) == config.folder(choice.workspace)
    assert choice.folder("low").name == "low-mean-seed0"


@pytest.mark.parametrize(
    "content", ["", "[1]", "{}", '{"recipe": {"name": "paper"}}', '{"status": "finished", "recipe": 1}']
)
def test_a_run_whose_configuration_is_none_is_an_error_not_a_crash(tmp_path: Path, content: str) -> None:
    choice = RunChoice(workspace=Workspace(tmp_path), dataset="tiny", recipe="paper")
    usual = tmp_path / "runs" / "tiny" / "split1" / "low-mean-seed0"
    usual.mkdir(parents=True)
    (usual / "config.json").write_text(content)
    with pytest.raises(TrainingError, match="configuration"):
        choice.folder("low")


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


def test_reproducing_runs_the_stages_in_order_and_stops_where_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    choice = RunChoice(workspace=Workspace(tmp_path), dataset="hmdb51", recipe="paper")
    steps = list(reproduce.steps_of(choice, device="cpu", seeds=2))
    assert [step.title.split(":")[0] for step in steps] == [
        "the three levels (Table 3, Figures 3 to 5)",
        "fusion weights on held-out training videos",
        "Table 2",
        "Figure 6",
        "Table 1",
    ]
    assert "--recipe" in steps[0].command
    assert "recipe=paper" in steps[2].command
    failing = [
        reproduce.Step("first", ("-c", "print('did the first')")),
        reproduce.Step("second", ("-c", "raise SystemExit(3)")),
        reproduce.Step("third", ("-c", "print('did the third')")),
    ]
    monkeypatch.setattr(reproduce, "steps_of", lambda *_, **__: iter(failing))
    with pytest.raises(TrainingError, match="second ended with exit code 3"):
        reproduce.run_all(choice, device="cpu", seeds=2)
    printed = capfd.readouterr().out
    assert "did the first" in printed
    assert "did the third" not in printed
