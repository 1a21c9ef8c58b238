"""Temperatures, reliability and the threshold for "none of these", against what made-up videos were drawn with."""

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.aggregate import PAPER_WEIGHTS, predicted
from cache.fingerprint import LEVELS
from fuse.calibration import (
    LEAST,
    LOST,
    MOST,
    Calibration,
    calibrate,
    refusals,
    reliability,
    scaled,
    temperature,
    threshold,
)


def drawn(videos: int, classes: int, sharpness: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from known probabilities, and these probabilities to the power of `sharpness`, normalised."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=2.0, size=(videos, classes))
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (true.cumsum(axis=1) > generator.random((videos, 1))).argmax(axis=1)
    shown = true**sharpness
    return shown / shown.sum(axis=1, keepdims=True), labels


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_the_sharpness_that_probabilities_were_given(sharpness: float) -> None:
    shown, labels = drawn(4000, 5, sharpness)
    found = temperature(shown, labels)
    assert found == pytest.approx(sharpness, rel=0.06)
    before, after = reliability(shown, labels)[0], reliability(scaled(shown, found), labels)[0]
    assert after < 0.02
    assert sharpness == 1.0 or before > 3 * after


def test_right_answers_alone_make_no_certainty() -> None:
    shown = np.full((30, 3), 0.1) + 0.7 * np.eye(3)[np.arange(30) % 3]
    sure = scaled(shown, temperature(shown, np.arange(30) % 3))
    assert sure.max(axis=1) == pytest.approx(31 / 32, abs=1e-3)


def test_few_videos_that_may_be_chance_leave_probabilities_as_they_are() -> None:
    shown, labels = drawn(25, 5, 1.3)
    assert temperature(shown, labels) == 1.0
    assert temperature(*drawn(400, 5, 1.3)) > 1.1
    assert sum(temperature(*drawn(50, 4, 1.0, seed)) != 1.0 for seed in range(100)) <= 12  # 5 expected


@given(st.integers(1, 30), st.integers(1, 6), st.floats(LEAST, MOST), st.integers(0, 1000))
def test_a_temperature_keeps_the_order_and_stays_in_its_range(
    videos: int, classes: int, given_temperature: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    shown = generator.dirichlet(np.full(classes, 0.1), videos)
    shown[0] = np.nan
    at = scaled(shown, given_temperature)
    assert np.isnan(at[0]).all()
    np.testing.assert_allclose(at[1:].sum(axis=1), 1)
    order = np.argsort(-shown[1:], axis=1, kind="stable")
    assert (np.diff(np.take_along_axis(at[1:], order, axis=1), axis=1) <= 0).all()
    labels = generator.integers(0, classes, videos)
    assert LEAST <= temperature(np.nan_to_num(shown, nan=1 / classes), labels) <= MOST


@given(st.integers(1, 200), st.integers(0, 1000))
def test_the_threshold_loses_no_more_right_answers_than_it_may_and_is_the_highest(videos: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    confidence, right = generator.integers(1, 20, videos) / 20, generator.random(videos) < 0.6
    chosen = threshold(confidence, right)
    found = refusals(confidence, right, chosen)
    assert found.right_lost <= LOST * max(found.right, 1)
    assert found.right + found.wrong == videos
    if right.any():
        higher = refusals(confidence, right, np.nextafter(chosen, 1))
        assert higher.right_lost > LOST * found.right
    else:
        assert (chosen, found.wrong_refused) == (0.0, 0)


def test_reliability_sorts_videos_into_bins_and_weighs_them() -> None:
    shown = np.array([[0.95, 0.05], [0.95, 0.05], [0.55, 0.45], [np.nan, np.nan], [0.0, 1.0]])
    error, bins = reliability(shown, np.array([0, 1, 1, 0, 1]))
    assert [(each.low, each.videos, each.accuracy) for each in bins] == [(0.5, 1, 0.0), (0.9, 3, 2 / 3)]
    assert error == pytest.approx((0.55 + 3 * (2.9 / 3 - 2 / 3)) / 4)
    assert reliability(np.full((2, 3), np.nan), np.array([0, 1])) == (0, ())


def test_what_is_found_comes_back_from_json_and_anything_else_is_refused() -> None:
    levels = {level: drawn(60, 4, sharpness)[0] for level, sharpness in zip(LEVELS, (0.5, 1, 2), strict=True)}
    labels = drawn(60, 4, 1)[1]
    found = calibrate(levels, labels, PAPER_WEIGHTS)
    assert found is not None
    assert found.videos == 60
    assert found.temperatures["low"] < found.temperatures["mid"] < found.temperatures["high"]
    assert Calibration.from_json(asdict(found)) == found
    assert calibrate({level: each[:9] for level, each in levels.items()}, labels[:9], PAPER_WEIGHTS) is None
    assert (predicted(scaled(levels["low"], found.temperatures["low"])) == predicted(levels["low"])).all()
    wrong: tuple[dict[str, Any], ...] = (
        {"threshold": 2},
        {"threshold": float("nan")},
        {"temperatures": {"fused": 1.0}},
        {"temperatures": {**found.temperatures, "fused": 0.0}},
        {"temperatures": {**found.temperatures, "fused": "1"}},
        {"heldout": None},
    )
    for change in wrong:
        with pytest.raises(ValueError, match=r"."):
            Calibration.from_json({**asdict(found), **change})
