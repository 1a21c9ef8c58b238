"""Grids: the paper's tables, axes from text, combinations."""

import pytest

from cache.common.errors import TrainingError
from train.recipes import RECIPES
from train.sweep.grid import TABLES, grid_points, parse_axis

PAPER = RECIPES["paper"]


def test_table_1_is_nine_settings_of_the_high_level():
    made = grid_points(TABLES["1"], PAPER)
    assert {point.level for point in made} == {"high"}
    assert [(point.recipe.hidden, point.recipe.layers) for point in made] == [
        (hidden, layers) for hidden in (256, 512, 1024) for layers in (3, 4, 5)
    ]
    assert made[0].label == "hidden 256, layers 3"


def test_clip_rules_are_an_axis_their_parts_joined_by_plus():
    made = grid_points(dict([parse_axis("clips=keep=first,keep=all+fps=10")]), PAPER)
    assert [str(point.recipe.clips) for point in made[::3]] == [str(PAPER.clips), "length=30,stride=8,keep=all,fps=10"]
    assert {point.label for point in made} == {"clips keep=first", "clips keep=all,fps=10"}
    with pytest.raises(TrainingError, match=r"'keep=last'|first, even, all"):
        parse_axis("clips=keep=last")


def test_table_2_is_three_levels_and_two_poolings():
    made = grid_points(TABLES["2"], PAPER)
    assert len(made) == 6
    assert {(point.level, point.pool) for point in made} == {
        (level, pool) for level in ("low", "mid", "high") for pool in ("mean", "max")
    }
    assert all(point.recipe == PAPER for point in made)


def test_plain_averaging_stands_once_however_many_poolings_there_are():
    made = grid_points({"level": ("high",), "cell": ("sru", "mean"), "pool": ("mean", "max")}, PAPER)
    assert [point.label for point in made] == ["cell sru, pool mean", "cell sru, pool max", "cell mean, pool mean"]


def test_one_value_is_held_fixed_and_does_not_name_rows():
    made = grid_points({"epochs": (3,), "lr": (0.01,)}, RECIPES["small"])
    assert {point.label for point in made} == {"mean pooling"}
    assert made[0].recipe.epochs_for(1) == 3
    assert set(made[0].recipe.learning_rate.values()) == {0.01}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hidden=256,512", ("hidden", (256, 512))),
        ("lr=1e-4,0.001", ("lr", (1e-4, 1e-3))),
        ("views=1,3", ("views", (1, 3))),
        ("cell=sru,lstm", ("cell", ("sru", "lstm"))),
    ],
)
def test_axes_are_read_from_text(text, expected):
    assert parse_axis(text) == expected


@pytest.mark.parametrize(
    ("text", "named"),
    [("depth=3", "depth"), ("hidden", "AXIS=VALUE"), ("hidden=big", "numbers"), ("cell=rnn", "'rnn'")],
)
def test_axes_that_make_no_sense_are_refused_with_what_is_possible(text, named):
    with pytest.raises(TrainingError, match=named):
        parse_axis(text)
