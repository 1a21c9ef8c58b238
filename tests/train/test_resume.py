"""A run that is killed and continued ends with the bits of one that was not. Real processes, real kill -9."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.common.interrupts import Interrupted, interruptible
from cache.common.workspace import Workspace
from cache.scores import read_scores
from tests.helpers.train import trainable_cache
from train.checkpoint import read_checkpoint
from train.config import RunConfig
from train.recipes import RECIPES
from train.run import run
from train.split import open_split

TRAIN = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from cache.common.workspace import Workspace
from train.run import run
from train.split import open_split
torch.set_num_threads(1)
workspace = Workspace(Path(sys.argv[1]))
split = open_split(workspace, "tiny", 1)
recipe = replace(split.recipes["small"], hidden=16, epochs=30, min_steps=0, batch=7)
config = split.config(level="mid", pool="max", seed=3, recipe=recipe, usual=recipe, holdout=False, watch=True)
run(split, config, workspace, torch.device("cpu"), tick_seconds=0, checkpoint_seconds=0)
"""

FOLDER = Path("runs/tiny/split1/mid-max-seed3-h16-e30-b7-watch")


def start(work: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", TRAIN, str(work)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def kill_after_rows(process: subprocess.Popen, work: Path, rows: int) -> None:
    """Kill the process once it has written so many rows of metrics (each is followed by checkpoints)."""
    metrics = work / FOLDER / "metrics.jsonl"
    while process.poll() is None:
        if metrics.exists() and metrics.read_text().count("\n") >= rows:
            break
        time.sleep(0.005)
    assert process.poll() is None, process.stderr.read().decode()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()


def test_ctrl_c_loses_no_step_and_the_run_says_where_it_goes_on(tmp_path, capsys):
    workspace = Workspace(tmp_path)
    trainable_cache(tmp_path)
    split, recipe = open_split(workspace, "tiny", 1), RECIPES["small"]
    recipe = replace(recipe, hidden=8, epochs=4, min_steps=0, batch=7)
    whole, torn = (
        split.config(level="low", pool="mean", seed=0, recipe=recipe, usual=usual, holdout=False)
        for usual in (recipe, RECIPES["small"])
    )

    class Line:
        def update(self, done: float, text: str = "") -> None:
            if done == 10:
                signal.raise_signal(signal.SIGINT)

    def train(config: RunConfig, line: Line | None = None) -> None:
        show = {} if line is None else {"show": lambda *_, **__: nullcontext(line)}
        run(split, config, workspace, torch.device("cpu"), tick_seconds=0, checkpoint_seconds=1e9, **show)

    with interruptible(), pytest.raises(Interrupted, match="low-mean is saved at epoch 3 of 4, after 2 of its 4 steps"):
        train(torn, Line())
    train(torn)
    assert "low-mean goes on at epoch 3 of 4, after 2 of its 4 steps" in capsys.readouterr().out
    train(whole)
    left, right = (read_checkpoint(each.folder(workspace) / "checkpoint.safetensors").tensors for each in (whole, torn))
    assert all(left[name].numpy().tobytes() == right[name].numpy().tobytes() for name in left)


@pytest.mark.slow
def test_killed_three_times_and_continued_gives_the_same_bits(tmp_path):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    for work in (whole, torn):
        trainable_cache(work)
    finish(start(whole))
    for rows in (2, 9, 17):
        kill_after_rows(start(torn), torn, rows)
    finish(start(torn))
    left, right = (read_checkpoint(work / FOLDER / "checkpoint.safetensors").tensors for work in (whole, torn))
    assert left.keys() == right.keys()
    assert all(left[name].numpy().tobytes() == right[name].numpy().tobytes() for name in left)
    tables = [read_scores(work / FOLDER / "scores.npz") for work in (whole, torn)]
    np.testing.assert_array_equal(tables[0].softmax, tables[1].softmax)
    losses = []
    for work in (whole, torn):
        rows = [json.loads(line) for line in (work / FOLDER / "metrics.jsonl").read_text().splitlines()]
        assert [row["epoch"] for row in rows] == list(range(30))
        losses.append([(row["loss"], row["heldout_loss"], row["heldout_accuracy"]) for row in rows])
    assert losses[0] == losses[1]
