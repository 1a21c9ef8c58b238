"""Sweeps: the table's numbers from known scores; real sweeps that are done once, continued, and list what failed."""

import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from cache.common.files import remove
from cache.common.workspace import Workspace
from cache.scores import ScoreTable, write_scores
from tests.helpers.train import grouped_dataset, trainable_cache
from train.cli import main
from train.recipes import RECIPES
from train.split import open_split
from train.sweep.grid import grid_points
from train.sweep.plan import Plan
from train.sweep.table import cells_of, make_table
from train.sweep.workers import SweepSettings, _receive, train_all

SMALL = RECIPES["small"]


def make_plan(workspace: Workspace, **axes) -> Plan:
    return Plan(
        splits={1: open_split(workspace, "tiny", 1)},
        points=tuple(grid_points(axes, SMALL)),
        seeds=(0, 1),
        holdout=False,
        search_fusion=False,
        usual={1: SMALL},
    )


def pretend(plan: Plan, workspace: Workspace, right: dict[tuple[str, int], int]) -> None:
    """Write scores in which so many of the six test videos are right, two clips each, for (level, seed)."""
    for config in plan.configs():
        videos = plan.splits[1].listed(holdout=False, seed=0)
        softmax = []
        for index, video in enumerate(videos):
            chosen = video.label if index < right[config.level, config.seed] else (video.label + 1) % 3
            # One clip errs, the other is surer: the mean decides.
            softmax += [np.roll([0.1, 0.5, 0.4], chosen), np.roll([0.9, 0.05, 0.05], chosen)]
        table = ScoreTable(
            video_ids=np.repeat([video.id for video in videos], 2),
            spans=np.tile([[0, 30], [8, 38]], (len(videos), 1)),
            labels=np.repeat([video.label for video in videos], 2),
            softmax=np.array(softmax, dtype=np.float32),
            classes=np.array(config.classes),
            run={},
        )
        write_scores(config.folder(workspace) / "scores.npz", table)


def test_cells_are_means_over_videos_and_deviations_over_seeds(tmp_path):
    trainable_cache(tmp_path)
    workspace = Workspace(tmp_path)
    plan = make_plan(workspace)
    right = {("low", 0): 1, ("low", 1): 2, ("mid", 0): 3, ("mid", 1): 3, ("high", 0): 6, ("high", 1): 5}
    pretend(plan, workspace, right)
    table = {cell.column: cell for cell in make_table(plan, workspace)}
    assert table["low"].accuracies == pytest.approx((1 / 6, 2 / 6))
    assert table["low"].text == "25.0 ± 11.8"
    assert table["mid"].text == "50.0 ± 0.0"
    assert table["fused 0.7/0.2/0.1"].accuracies == pytest.approx((1.0, 5 / 6))
    assert table["mean of levels"].accuracies == pytest.approx((3 / 6, 3 / 6))
    assert cells_of(list(table.values()), losses=False)[1][0][:2] == ["mean pooling", "25.0 ± 11.8"]
    # A video that is right has 0.5 for its class, another 0.225: means of two clips.
    expected = [-(right * np.log(0.5) + (6 - right) * np.log(0.225)) / 6 for right in (1, 2)]
    assert table["low"].log_losses == pytest.approx(expected)
    _, rows = cells_of(list(table.values()), losses=True)
    assert f"25.0 ± 11.8 ({np.mean(expected):.3f})" in rows[0]


def test_a_test_video_without_features_counts_as_wrong(tmp_path):
    dataset = grouped_dataset()
    last = dataset.samples[-1]
    moved = (*dataset.samples[:-1], replace(last, splits={1: "test"}))
    cache = trainable_cache(tmp_path, replace(dataset, samples=moved), leave_out=1)
    claim = cache.ledger.claim("test", 1, 60.0)
    from cache.ledger import Outcome

    cache.commit(claim, None, [Outcome(video_id=last.id, status="failed", reason="damaged")], {})
    cache.close()
    workspace = Workspace(tmp_path)
    plan = make_plan(workspace, level=("low",))
    scored = plan.splits[1].test
    assert len(plan.splits[1].listed(holdout=False, seed=0)) == len(scored) + 1
    for config in plan.configs():
        table = ScoreTable(
            video_ids=np.array([video.id for video in scored]),
            spans=np.tile([[0, 30]], (len(scored), 1)),
            labels=np.array([video.label for video in scored]),
            softmax=np.eye(3, dtype=np.float32)[[video.label for video in scored]],
            classes=np.array(config.classes),
            run={},
        )
        write_scores(config.folder(workspace) / "scores.npz", table)
    (cell,) = make_table(plan, workspace)
    assert cell.accuracies == pytest.approx((6 / 7, 6 / 7))


def sweep(work: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "train", "sweep", "--work", str(work), "--grid", "hidden=8", "--jobs", "2", *options]


def outcome(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)


@pytest.mark.slow
def test_a_sweep_trains_once_and_writes_its_table(tmp_path):
    trainable_cache(tmp_path)
    options = ("--grid", "level=low", "--grid", "epochs=1", "--grid", "pool=mean,max", "--seeds", "1")
    page = tmp_path / "results.md"
    result = outcome(sweep(tmp_path, *options, "--page", str(page)))
    assert result.returncode == 0, result.stderr
    assert "3 runs, 0 of them done already" in result.stdout
    folder = tmp_path / "sweeps/tiny/grid"
    table = (folder / "table.md").read_text()
    assert "| pool mean |" in table
    assert "random:0" in table
    assert "mrrn sweep --dataset tiny --seeds 1 --grid hidden=8 --grid level=low" in table
    assert page.read_text().endswith(table)
    values = json.loads((folder / "results.json").read_text())
    assert [cell["setting"] for cell in values["cells"]] == ["pool mean", "pool max", "recipe linear"]
    again = outcome(sweep(tmp_path, *options))
    assert "3 runs, 3 of them done already" in again.stdout
    assert (folder / "table.md").read_text() == table
    runs = {path.name.split("-")[1]: path for path in tmp_path.glob("runs/tiny/split1/low-m*-seed0-h8*")}
    shutil.copy(runs["max"] / "config.json", runs["mean"])
    refused = outcome(sweep(tmp_path, *options))
    assert (refused.returncode, "--fresh" in refused.stderr) == (1, True)
    replaced = outcome(sweep(tmp_path, *options, "--fresh"))
    assert replaced.returncode == 0, replaced.stderr
    assert "3 runs, 2 of them done already, 1 others are replaced" in replaced.stdout
    assert (folder / "table.md").read_text() == table


def finished_runs(runs: Path) -> dict[Path, int]:
    """Folders of finished runs, and when they were finished."""
    configs = [path for path in runs.glob("*/config.json") if json.loads(path.read_text())["status"] == "finished"]
    return {path: path.stat().st_mtime_ns for path in configs}


def wait_until_free(lock: Path, seconds: float = 20.0) -> None:
    """Wait until no process holds the lock of a run's folder."""
    with lock.open("w") as file:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                assert time.monotonic() < deadline, f"{lock} is still held: a worker outlived the sweep"
                time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_sweep_continues_and_its_workers_end_with_it(tmp_path):
    trainable_cache(tmp_path)
    options = ("--grid", "level=low", "--grid", "epochs=60", "--grid", "pool=mean,max,attention", "--seeds", "1")
    process = subprocess.Popen(
        sweep(tmp_path, *options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    runs = tmp_path / "runs/tiny/split1"
    deadline = time.monotonic() + 120
    while not finished_runs(runs) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for lock in runs.glob("*/run.lock"):
        wait_until_free(lock)
    before = finished_runs(runs)
    assert 1 <= len(before) < 4
    result = outcome(sweep(tmp_path, *options))
    assert result.returncode == 0, result.stderr
    assert len(list(runs.glob("*/scores.npz"))) == 4  # three heads and their baseline
    assert finished_runs(runs).items() >= before.items()


@pytest.mark.slow
def test_runs_that_fail_are_listed_and_the_others_are_done(tmp_path):
    trainable_cache(tmp_path)
    grid = ("level=low", "epochs=3", "batch=7", "lr=1e38,1e-3")
    options = ("--seeds", "1", *(text for axis in grid for text in ("--grid", axis)))
    result = outcome(sweep(tmp_path, *options))
    assert result.returncode == 3
    assert "NaN or Inf" in result.stderr
    assert len(list((tmp_path / "runs/tiny/split1").glob("*/scores.npz"))) == 2  # a head and its baseline


@pytest.mark.parametrize("options", [(), ("--grid", "depth=3"), ("--table", "7")])
def test_a_grid_that_makes_no_sense_is_refused(tmp_path, options):
    trainable_cache(tmp_path)
    result = CliRunner().invoke(main, ["sweep", "--work", str(tmp_path), *options], catch_exceptions=False)
    assert result.exit_code in (1, 2)


def test_the_workers_log_is_neither_a_link_nor_a_pipe(tmp_path):
    settings = SweepSettings(workspace=Workspace(tmp_path), device="cpu", threads=1, log=tmp_path / "workers.log")
    for put in (os.mkfifo, lambda path: path.symlink_to(tmp_path / "elsewhere"), Path.mkdir):
        put(settings.log)
        with pytest.raises(OSError, match=r"workers\.log"):
            train_all([], settings, 1)
        remove(settings.log)
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_dies_before_it_has_read_its_run_is_told_of(tmp_path):
    ours, theirs = multiprocessing.Pipe()
    ours.send("a run")
    theirs.close()
    dead = SimpleNamespace(join=lambda: None, exitcode=-9)
    assert "ended with signal 9" in _receive(ours, dead, tmp_path / "workers.log").error
