"""Whether one model is better than another on the same videos."""

from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import comparison


def test_difference_interval_is_that_of_resampled_pairs() -> None:
    generator = np.random.default_rng(3)
    first, second = generator.random(500) < 0.8, generator.random(500) < 0.7
    found = comparison.difference_interval(first, second)
    rows = generator.integers(0, 500, (4000, 500))
    drawn = first[rows].mean(axis=1) - second[rows].mean(axis=1)
    np.testing.assert_allclose([found.low, found.high], np.percentile(drawn, [2.5, 97.5]), atol=0.006)


def pairs(only_first: int, only_second: int, both: int = 3) -> tuple[np.ndarray, np.ndarray]:
    first = np.array([True] * only_first + [False] * only_second + [True] * both, dtype=bool)
    return first, np.array([False] * only_first + [True] * only_second + [True] * both, dtype=bool)


def mcnemar_of(only_first: int, only_second: int) -> comparison.McNemar:
    return comparison.mcnemar(*pairs(only_first, only_second))


@pytest.mark.parametrize(
    ("only_first", "only_second", "p_value"),
    [(0, 0, 1.0), (3, 3, 1.0), (5, 0, 2 / 2**5), (1, 9, 2 * (1 + 10) / 2**10), (8, 2, 2 * (1 + 10 + 45) / 2**10)],
)
def test_mcnemar_against_hand_worked_binomials(only_first: int, only_second: int, p_value: float) -> None:
    found = mcnemar_of(only_first, only_second)
    assert (found.only_first, found.only_second) == (only_first, only_second)
    assert found.p_value == pytest.approx(p_value)


def test_mcnemar_of_thousands_of_disagreements_does_not_overflow() -> None:
    found = mcnemar_of(1500, 1300)
    assert found.p_value == pytest.approx(2 * sum(comb(2800, k) for k in range(1301)) / 2**2800)
    assert 1e-4 < found.p_value < 2e-4


@settings(deadline=None)  # the first example imports scipy
@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_has_the_binomial_distribution_of_scipy(only_first: int, only_second: int) -> None:
    special = pytest.importorskip("scipy.special")
    tail = float(special.bdtr(min(only_first, only_second), only_first + only_second, 0.5))
    assert mcnemar_of(only_first, only_second).p_value == pytest.approx(min(1.0, 2 * tail))


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 60))
def test_the_words_on_a_difference_never_contradict_interval_or_test(only: int, other: int, both: int) -> None:
    found = comparison.compare(*pairs(only, other, both))
    opposite = {"better": "worse", "worse": "better"}
    turned = comparison.compare(*reversed(pairs(only, other, both)))
    assert turned.verdict in (opposite.get(found.verdict, found.verdict), "chance")
    claimed = "hardly explains" in found.text
    assert claimed == (found.verdict in opposite)
    if claimed:
        assert found.test.p_value < 0.05
        assert found.interval.low > 0 or found.interval.high < 0
        assert (found.difference > 0) == (found.verdict == "better")
    else:
        assert "interval" not in found.text
    assert ("too few to judge" in found.text) == (only + other + both < 10)


def test_four_videos_that_differ_are_no_proof_although_the_bootstrap_leaves_out_zero() -> None:
    found = comparison.compare(*pairs(4, 0, 20))
    assert found.interval.low > 0
    assert found.text == "+16.7 points, which chance may explain (McNemar's exact test, p = 0.12)"
    assert comparison.compare(*pairs(0, 12, 20)).text.startswith("−37.5 points (95 % interval −")
    assert comparison.compare(*pairs(0, 0, 20)).verdict == "same"
