"""Runs: names of folders, what makes two runs differ, configurations that cannot be read."""

import json
from dataclasses import replace
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest

from cache.common.errors import TrainingError
from cache.common.workspace import Workspace
from tests.helpers.train import trainable_cache
from tests.train.test_checkpoint import CONFIG
from train.config import (
    CONFIG_FILE,
    SCORES_FILE,
    RunConfig,
    baseline_of,
    read_config,
    state_of,
    variant_of,
    version_of,
    write_config,
)
from train.recipes import RECIPES, with_overrides
from train.split import open_split

SMALL, PAPER = RECIPES["small"], RECIPES["paper"]


@pytest.mark.parametrize(
    ("recipe", "holdout", "expected"),
    [
        (SMALL, False, ""),
        (PAPER, False, "paper"),
        (with_overrides(SMALL, layers=4), False, "l4"),
        (with_overrides(PAPER, cell="lstm"), False, "paper-lstm"),
        (with_overrides(SMALL, hidden=512, epochs=12, batch=14), False, "h512-e12-b14"),
        (with_overrides(SMALL, learning_rate=0.003), True, "lr0.003-holdout"),
        (with_overrides(SMALL, schedule="step", precision="bf16"), False, "step-bf16"),
        (with_overrides(SMALL, weight_decay=0.01, mixup=0.5), False, "decay0.01-mixup0.5"),
        (with_overrides(SMALL, label_smoothing=0.1, feature_noise=0.2), False, "smoothing0.1-noise0.2"),
        (with_overrides(SMALL, views=1, variational_dropout=0.2), False, "vdropout0.2-views1"),
        (with_overrides(SMALL, clips="keep=all,length=16"), False, "clips16-8-all"),
        (with_overrides(PAPER, clips="max=40,fps=12.5"), True, "paper-clips30-8-40-first-fps12.5-holdout"),
        (SMALL, True, "holdout"),
    ],
)
def test_variants_name_what_differs_from_the_usual_recipe(recipe, holdout, expected):
    assert variant_of(recipe, SMALL, holdout=holdout) == expected


def test_the_folder_is_where_other_stages_look(tmp_path):
    config = replace(CONFIG, variant="")
    assert config.folder(Workspace(tmp_path)) == tmp_path / "runs/tiny/split1/low-mean-seed0"


def test_a_configuration_comes_back(tmp_path):
    assert read_config(tmp_path) is None
    write_config(tmp_path, CONFIG, "training")
    assert read_config(tmp_path) == (CONFIG, "training")


def test_a_run_is_finished_only_with_its_scores(tmp_path):
    assert state_of(tmp_path, CONFIG) == "new"
    write_config(tmp_path, CONFIG, "finished")
    assert state_of(tmp_path, CONFIG) == "unfinished"
    (tmp_path / SCORES_FILE).touch()
    assert state_of(tmp_path, CONFIG) == "finished"


def test_other_versions_of_libraries_do_not_make_another_run(tmp_path):
    write_config(tmp_path, CONFIG, "training")
    assert state_of(tmp_path, replace(CONFIG, versions={"torch": "9"})) == "unfinished"


def test_other_words_about_a_recipe_do_not_make_another_run(tmp_path):
    write_config(tmp_path, CONFIG, "training")
    reworded = replace(CONFIG, recipe=replace(CONFIG.recipe, summary="in other words"))
    assert state_of(tmp_path, reworded) == "unfinished"


def test_a_run_of_other_settings_is_refused_by_name(tmp_path):
    write_config(tmp_path, CONFIG, "training")
    other = replace(CONFIG, recipe=replace(CONFIG.recipe, batch=14))
    with pytest.raises(TrainingError, match=r"recipe.batch is 14, was 32.*--fresh"):
        state_of(tmp_path, other)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        json.dumps({"status": "training"}),
        json.dumps({"status": 1, "recipe": 3}),
        json.dumps({**CONFIG.to_json(), "status": "half"}),
        json.dumps({**CONFIG.to_json(), "status": "finished", "seed": "0"}),
        json.dumps({**CONFIG.to_json(), "status": "finished", "recipe": {**CONFIG.recipe.to_json(), "epochs": 1.5}}),
    ],
)
def test_a_configuration_that_cannot_be_read_is_a_named_error(tmp_path, content):
    (tmp_path / CONFIG_FILE).write_text(content)
    with pytest.raises(TrainingError, match=rf"{tmp_path}.*--fresh"):
        read_config(tmp_path)


def test_fields_of_a_newer_version_are_left_alone(tmp_path):
    (tmp_path / CONFIG_FILE).write_text(json.dumps({"status": "finished", **CONFIG.to_json(), "surprise": 1}))
    assert read_config(tmp_path) == (CONFIG, "finished")


def test_a_checkout_that_is_not_installed_is_recorded_as_such(monkeypatch, tmp_path):
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    assert version_of("numpy") == np.__version__
    monkeypatch.setattr("train.config.version", missing)
    assert version_of("mrrn") == "not installed"
    trainable_cache(tmp_path)
    split = open_split(Workspace(tmp_path), "tiny", 1)
    config = split.config(level="low", pool="mean", seed=0, recipe=SMALL, usual=SMALL, holdout=False)
    assert config.versions["mrrn"] == "not installed"


def test_a_configuration_written_before_a_field_existed_is_the_same_run():
    value = CONFIG.to_json()
    del value["watch"]
    assert RunConfig.from_json(value).differences(CONFIG) == []


def test_the_baseline_is_shared_by_seeds_and_poolings():
    first, second = replace(CONFIG, seed=3, pool="max", variant="h512"), replace(CONFIG, seed=1)
    assert baseline_of(first) == baseline_of(second)
    assert baseline_of(first).variant == "linear"
    assert baseline_of(replace(first, holdout=True)).seed == 3
