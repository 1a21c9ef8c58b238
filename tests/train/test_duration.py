"""How long training is expected to take."""

from dataclasses import replace

import pytest
import torch

from cache.clips import ClipRule
from cache.common.workspace import Workspace
from tests.helpers.train import trainable_cache
from train import duration
from train.clips import load_bank
from train.recipes import RECIPES
from train.split import open_split


@pytest.mark.parametrize("fps", [None, 12.5], ids=["each frame", "at a rate of its own"])
def test_it_counts_the_clips_that_a_run_learns_from(tmp_path, monkeypatch, fps):
    trainable_cache(tmp_path)
    split, cpu = open_split(Workspace(tmp_path), "tiny", 1), torch.device("cpu")
    recipe = replace(RECIPES["small"], epochs=1, min_steps=0, batch=1, hidden=4, clips=ClipRule(stride=4, fps=fps))
    config = split.config(level="low", pool="mean", seed=0, recipe=recipe, usual=recipe, holdout=False)
    monkeypatch.setattr(duration, "_measured", lambda *_: (float("inf"), 1.0))
    steps = duration.expected_seconds(split, [config], cpu) / duration.STEP_SECONDS["cpu"]
    assert round(steps) == len(load_bank(split.cache, "low", split.training, recipe.clips, cpu))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_products_are_timed_in_the_precision_of_the_run(tmp_path, monkeypatch, precision):
    trainable_cache(tmp_path)
    split, cpu = open_split(Workspace(tmp_path), "tiny", 1), torch.device("cpu")
    recipe = replace(RECIPES["small"], precision=precision)
    config = split.config(level="low", pool="mean", seed=0, recipe=recipe, usual=recipe, holdout=False)
    timed = []
    monkeypatch.setattr(duration, "_measured", lambda _, dtype: timed.append(dtype) or (1e9, 1.0))
    duration.expected_seconds(split, [config], cpu)
    assert timed == [{"fp32": torch.float32, "bf16": torch.bfloat16}[precision]]
