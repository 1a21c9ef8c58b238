"""Fusion weights found on held-out videos."""

import numpy as np
import pytest

from cache.aggregate import search_weights


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
