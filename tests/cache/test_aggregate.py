"""Clip to video, levels to one prediction, and fusion weights found on held-out videos."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.aggregate import (
    MEAN_WEIGHTS,
    NO_PREDICTION,
    PAPER_WEIGHTS,
    accuracy_text,
    align,
    clips_to_videos,
    correct,
    fraction,
    fuse_levels,
    macro_accuracy,
    per_class,
    predicted,
    search_weights,
    wilson,
)
from cache.common.errors import ScoreError
from cache.fingerprint import LEVELS
from tests.helpers.scores import hand_worked_results, hand_worked_tables


def test_hand_worked_scores_give_the_hand_worked_fusion() -> None:
    videos = {}
    for level, table in hand_worked_tables().items():
        ids, videos[level] = clips_to_videos(table.video_ids, table.softmax)
        assert ids == ["a/one", "b/two"]
    np.testing.assert_allclose(videos["low"][:, 0], [0.4, 0.8], atol=1e-7)
    np.testing.assert_allclose(videos["mid"][:, 0], [0.7, 0.4], atol=1e-7)
    np.testing.assert_allclose(videos["high"][:, 0], [0.6, 0.4], atol=1e-7)
    np.testing.assert_allclose(fuse_levels(videos), [[0.60, 0.40], [0.44, 0.56]], atol=1e-7)
    np.testing.assert_allclose(fuse_levels(videos, MEAN_WEIGHTS)[:, 0], [1.7 / 3, 1.6 / 3], atol=1e-7)


def test_hand_worked_accuracies() -> None:
    results = hand_worked_results()
    assert results.accuracy("low") == 0.0
    assert results.accuracy("mid") == 1.0
    assert results.accuracy("fused") == 1.0
    assert results.accuracy("mean") == 0.5
    assert results.clips == 6


def test_the_papers_weights_are_equation_10() -> None:
    assert PAPER_WEIGHTS == {"high": 0.7, "mid": 0.2, "low": 0.1}


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(1, 6))
def test_a_video_is_the_mean_of_its_clips_whatever_their_order(video_of_clip: list[int], classes: int) -> None:
    ids = np.array([f"v{index}" for index in video_of_clip])
    softmax = np.random.default_rng(len(ids)).dirichlet(np.ones(classes), size=len(ids))
    names, means = clips_to_videos(ids, softmax)
    assert names == list(dict.fromkeys(ids.tolist()))
    for name, mean in zip(names, means, strict=True):
        np.testing.assert_allclose(mean, softmax[ids == name].mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(means.sum(axis=1), 1)


def test_clips_and_ids_of_different_number_are_refused() -> None:
    with pytest.raises(ScoreError, match=r"expected \[N\] and \[N, K\]"):
        clips_to_videos(["a", "b"], np.ones((3, 2)))


def test_a_missing_level_is_named() -> None:
    with pytest.raises(ScoreError, match="no scores of level mid, low"):
        fuse_levels({"high": np.ones((2, 2)) / 2})


def test_levels_of_different_videos_are_refused() -> None:
    levels = {level: np.ones((2 + (level == "low"), 2)) / 2 for level in LEVELS}
    with pytest.raises(ScoreError, match="different shapes"):
        fuse_levels(levels)


@pytest.mark.parametrize("weights", [{"high": 0.5}, {"high": 1.5, "low": -0.5}, {"high": float("nan")}, {"top": 1.0}])
def test_weights_that_are_no_shares_are_refused(weights: dict) -> None:  # type: ignore[type-arg]
    with pytest.raises(ScoreError, match="fusion weights"):
        fuse_levels({level: np.ones((2, 2)) / 2 for level in LEVELS}, weights)


def test_videos_without_scores_become_nan_rows() -> None:
    aligned = align(["b", "a"], np.array([[0.1, 0.9], [0.8, 0.2]]), ["a", "gone", "b"])
    np.testing.assert_array_equal(aligned, [[0.8, 0.2], [np.nan, np.nan], [0.1, 0.9]])


def one_hot(classes: list[int], sure: float = 0.9) -> np.ndarray:
    table = np.full((len(classes), 3), (1 - sure) / 2)
    table[np.arange(len(classes)), classes] = sure
    return table


def test_a_level_that_is_always_right_gets_the_weight_that_it_needs():
    labels = np.array([0, 1, 2, 0, 1, 2])
    right, wrong = one_hot([0, 1, 2, 0, 1, 2]), one_hot([1, 2, 0, 1, 2, 0])
    weights = search_weights({"low": wrong, "mid": wrong, "high": right}, labels)
    assert weights == {"low": 0.0, "mid": 0.0, "high": 1.0}


def test_levels_that_complete_each_other_are_both_used():
    labels = np.array([0, 1, 2, 0])
    low = one_hot([0, 1, 0, 1], 0.6)
    low[2:] = 1 / 3
    high = one_hot([1, 2, 2, 0], 0.6)
    high[:2] = 1 / 3
    weights = search_weights({"low": low, "mid": np.full((4, 3), 1 / 3), "high": high}, labels)
    assert weights["low"] > 0
    assert weights["high"] > 0
    fused = weights["low"] * low + weights["high"] * high + weights["mid"] / 3
    assert (fused.argmax(axis=1) == labels).all()


@pytest.mark.parametrize("step", [0.5, 0.1, 0.05])
def test_weights_are_shares_of_one_in_steps(step):
    generator = np.random.default_rng(0)
    tables = {level: generator.dirichlet(np.ones(4), size=30) for level in ("low", "mid", "high")}
    weights = search_weights(tables, generator.integers(4, size=30), step)
    assert sum(weights.values()) == pytest.approx(1)
    for weight in weights.values():
        assert weight / step == pytest.approx(round(weight / step))


def test_right_predictions_their_ties_and_what_never_is_right() -> None:
    probabilities = np.array([[0.6, 0.3, 0.1], [0.4, 0.4, 0.2], [0.4, 0.4, 0.2], [np.nan] * 3, [0.5, 0.3, 0.2]])
    labels = np.array([0, 0, 1, 0, NO_PREDICTION])
    assert predicted(probabilities).tolist() == [0, 0, 0, NO_PREDICTION, 0]
    assert correct(probabilities, labels).tolist() == [True, True, False, False, False]
    assert not correct(probabilities, np.full(5, NO_PREDICTION)).any()
    assert fraction(correct(probabilities, labels)) == 2 / 5
    assert fraction(np.zeros(0, dtype=bool)) == 0.0


def test_per_class_has_nan_for_a_class_without_videos_and_macro_leaves_it_out() -> None:
    right, labels = np.array([True, False, True]), np.array([0, 0, 2])
    np.testing.assert_array_equal(per_class(right, labels, 4), [0.5, np.nan, 1.0, np.nan])
    assert macro_accuracy(right, labels, 4) == 0.75
    assert macro_accuracy(right[:0], labels[:0], 4) == 0.0


@pytest.mark.parametrize(
    ("right", "videos", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3, to its four digits.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_against_published_figures(right: int, videos: int, low: float, high: float) -> None:
    found = wilson(right, videos)
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)


@given(st.integers(0, 400), st.integers(0, 400))
def test_wilsons_interval_ends_where_the_share_is_just_not_rejected(one: int, other: int) -> None:
    right, videos = min(one, other), max(one, other)
    found = wilson(right, videos)
    assert 0 <= found.low <= (right / videos if videos else 0.5) <= found.high <= 1
    assert (found.low == found.high) is False
    mirrored = wilson(videos - right, videos)
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((found.low, found.high))
    for end in (found.low, found.high) if videos else ():
        # The score test: the share is 1.96 standard errors away, as they are if the end were the truth.
        away = 1.959963984540054 * math.sqrt(end * (1 - end) / videos)
        assert abs(right / videos - end) == pytest.approx(away, abs=1e-7)


def test_three_of_three_are_no_certainty() -> None:
    assert accuracy_text(3, 3) == "100.0 %, 95 % interval 43.9 to 100.0: too few to judge"
    assert accuracy_text(25, 35) == "71.4 %, 95 % interval 54.9 to 83.7"
    assert "too few" in accuracy_text(0, 0)
