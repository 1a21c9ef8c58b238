"""Recipes: the paper's one, line by line against the paper's words, and how others are chosen and kept."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from cache.clips import ClipRule
from cache.common.errors import TrainingError
from cache.fingerprint import CHANNELS, LEVELS
from train.recipes import KNOBS, RECIPES, Recipe, default_recipe, recipes_for

PAPER = RECIPES["paper"]


class TestThePapersWords:
    """Each test's name is a sentence of the paper, shortened; sections in the docstrings."""

    def test_adam_was_used_without_weight_decay(self):
        """4.2: "Adam optimizer algorithm and CrossEntropyLoss function were used to optimize all networks"."""
        import torch

        from train.heads import Head
        from train.steps import make_optimizer

        head = Head(4, 2, replace(PAPER, hidden=4, layers=1))
        optimizer = make_optimizer(head, 1e-5, PAPER.weight_decay, torch.device("cpu"))
        assert type(optimizer) is torch.optim.Adam
        assert optimizer.defaults["betas"] == (0.9, 0.999)
        assert optimizer.defaults["weight_decay"] == 0

    def test_cross_entropy_without_smoothing(self):
        """4.2: "CrossEntropyLoss function"."""
        assert (PAPER.label_smoothing, PAPER.balance) == (0, "none")

    def test_features_and_labels_are_taken_as_they_are_in_single_precision(self):
        """4.2 names no scaling, no augmentation of features or labels, and no other precision."""
        assert (PAPER.shortcut, PAPER.input_dropout) == ("none", 0)
        assert (PAPER.inputs, PAPER.feature_noise, PAPER.mixup, PAPER.precision) == ("raw", 0, 0, "fp32")

    def test_mini_batch_size_28(self):
        """4.2: "with mini-batch size 28"."""
        assert PAPER.batch == 28

    def test_12_epochs_over_the_entire_dataset(self):
        """4.2: "for 12 epochs over the entire datasets"."""
        assert PAPER.epochs_for(steps_per_epoch=1) == PAPER.epochs_for(steps_per_epoch=755) == 12

    def test_learning_rate_1e_5_for_the_first_8_epochs_and_1e_6_for_the_rest(self):
        """4.2: "initial learning rate is set to 1e-5 for the first 8 epochs and changed to 1e-6 for the rest"."""
        rates = [PAPER.rate("high", epoch, 12) for epoch in range(12)]
        assert rates == pytest.approx([1e-5] * 8 + [1e-6] * 4, rel=1e-12)

    @pytest.mark.parametrize("level", ["low", "mid"])
    def test_learning_rate_1e_4_for_the_low_and_mid_levels(self, level):
        """5.2: "In the case of low-level representations and mid-level ..., we change the learning rate to 1e-4"."""
        rates = [PAPER.rate(level, epoch, 12) for epoch in range(12)]
        assert rates == pytest.approx([1e-4] * 8 + [1e-5] * 4, rel=1e-12)

    def test_dropout_half_for_linear_transformations_and_0_between_layers(self):
        """4.2: "dropout ... ratio 0.5 for linear transformations and 0 for connections between RNN layers"."""
        assert (PAPER.variational_dropout, PAPER.dropout) == (0.5, 0.0)

    def test_3_layers_of_1024_sru_units(self):
        """5.1: "we fix the number of hidden units as 1024 and layers as 3"."""
        assert (PAPER.cell, PAPER.layers, PAPER.hidden) == ("sru", 3, 1024)

    def test_a_random_one_of_all_views_the_centre_among_them(self):
        """4.2: "randomly cropped ... or its horizon flip"; here by drawing from the views that the cache has."""
        assert PAPER.views == 0

    def test_orthogonal_weight_initialization(self):
        """4.2: "orthogonal weight initialization ... is used to initialize SRU"."""
        import torch

        from train.heads import Head

        torch.manual_seed(0)
        head = Head(16, 2, replace(PAPER, hidden=16, layers=2))
        matrices = [matrix for name, each in head.named_parameters() if "weights" in name for matrix in each]
        assert matrices
        for matrix in matrices:
            torch.testing.assert_close(matrix @ matrix.t(), torch.eye(16), atol=1e-5, rtol=0)

    def test_30_frame_clips_with_a_stride_of_8_and_at_most_20_a_video(self):
        """4.2: "30 frames clips with a stride of 8 frames and the maximum of clips split from one video is ... 20"."""
        assert PAPER.clips == ClipRule(length=30, stride=8, max_clips=20, keep="first", fps=None)

    def test_input_sizes_128_256_512(self):
        """4.2: "For low-, mid-, high-level frame representations, the inputsize of SRU is 128, 256 and 512"."""
        assert [CHANNELS[level] for level in LEVELS] == [128, 256, 512]


@pytest.mark.shared
@pytest.mark.parametrize(("half", "paper"), [("train", 21_147), ("test", 8_791)])
def test_paper_24fps_cuts_hmdb51_into_the_papers_number_of_clips_within_2_percent(shared: Path, half, paper):
    """4.2: "we obtain 21147 clips for training ... and 8791 clips for testing". HMDB-51 is 30 frames a second."""
    with (shared / "data/frame-counts/hmdb51_frames.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split1"] == half]
    rule = RECIPES["paper-24fps"].clips
    clips = sum(rule.count(int(row["frames_decoded_estimate"]), native_fps=30.0) for row in rows)
    assert clips == pytest.approx(paper, rel=0.02)
    assert replace(RECIPES["paper-24fps"], name="paper", summary=PAPER.summary, clips=PAPER.clips) == PAPER


def test_own_videos_keep_even_clips_except_by_the_papers_recipes():
    kept = {name: recipe.clips.keep for name, recipe in recipes_for("folder").items()}
    assert kept.keys() == RECIPES.keys()
    assert {name for name, keep in kept.items() if keep == "first"} == {"paper", "paper-24fps"}
    assert recipes_for("ucf101") == recipes_for("hmdb51") == RECIPES


def test_small_is_the_default_but_for_all_of_the_papers_datasets_and_says_why():
    assert default_recipe("hmdb51", 21_147)[0] == "paper"
    name, why = default_recipe("ucf101", 1_512)
    assert name == "small"
    assert "1,512 training clips" in why
    assert default_recipe("folder", 200_000)[0] == "small"


def test_epochs_are_added_until_there_are_enough_steps():
    recipe = replace(PAPER, epochs=3, min_steps=100)
    assert [recipe.epochs_for(steps) for steps in (1, 30, 50, 99, 100)] == [100, 4, 3, 3, 3]


def test_cosine_goes_from_the_first_rate_towards_a_hundredth_and_never_rises():
    recipe = replace(PAPER, schedule="cosine")
    rates = [recipe.rate("mid", epoch, 40) for epoch in range(40)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates == sorted(rates, reverse=True)
    assert 1e-6 <= rates[-1] < 2e-6


def test_no_two_knobs_give_a_run_folder_the_same_name():
    words = [knob.word for knob in KNOBS.values() if not isinstance(knob.kind, tuple)]
    assert all(words)
    assert len(set(words)) == len(words)
    names = [knob.word + name for knob in KNOBS.values() if isinstance(knob.kind, tuple) for name in knob.kind]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_survives_json(name):
    recipe = RECIPES[name]
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden": 0}, "hidden"),
        ({"cell": "rnn"}, "cell"),
        ({"variational_dropout": 1.0}, "variational_dropout"),
        ({"learning_rate": {"low": 1e-4}}, "learning_rate"),
        ({"schedule": "linear"}, "schedule"),
        ({"feature_noise": -0.1}, "feature_noise"),
        ({"precision": "fp16"}, "precision"),
        ({"views": -1}, "views"),
        ({"balance": "all"}, "balance"),
    ],
)
def test_unusable_values_are_refused_by_name(changes, named):
    with pytest.raises(TrainingError, match=named):
        replace(PAPER, **changes)


def test_a_recipe_written_before_a_field_existed_has_its_default():
    value = PAPER.to_json()
    del value["inputs"]
    assert Recipe.from_json(value) == PAPER


@pytest.mark.parametrize(
    "broken", [{"surprise": 1}, {"clips": {"length": 0}}, {"clips": {"more": 1}}, {"clips": 3}, {"hidden": "8"}]
)
def test_a_recipe_that_cannot_be_read_is_a_named_error(broken):
    with pytest.raises(TrainingError, match="recipe"):
        Recipe.from_json({**PAPER.to_json(), **broken})
