"""How good predictions are beyond plain accuracy (`cache.aggregate`), and whether one model is better. Pure arrays.

Shapes: N videos, K classes. A video without prediction is a NaN row of `probabilities`; it counts as wrong everywhere.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from cache.aggregate import FEW_VIDEOS, NO_PREDICTION, TOO_FEW, Interval

Probabilities = NDArray[np.float64]
Labels = NDArray[np.int64]

TOP: Final = 5
"""Classes that a prediction is shown with."""

RESAMPLES: Final = 10_000
"""Bootstrap resamples: enough that the interval's ends do not move by a tenth of a point between seeds."""

SEED: Final = 0

SIGNIFICANT: Final = 0.05
"""Below this p-value a difference is taken for more than chance, as with 95 % intervals."""

Verdict = Literal["better", "worse", "chance", "same", "too few"]
"""What can be said of one model against another; `chance`: the difference may be chance."""


def ranked(probabilities_K: NDArray[np.float64]) -> list[int]:
    """Indices of the TOP most probable classes, the smaller index first on a tie."""
    return np.argsort(-probabilities_K, kind="stable")[:TOP].tolist()


def top_k_correct(probabilities_NK: Probabilities, labels_N: Labels, k: int) -> NDArray[np.bool_]:
    """Whether the true class is among the `k` most probable ones, per video `[N]`.

    Ties go to the class with the smaller index, as in `cache.aggregate.predicted`.
    """
    own_N1 = np.take_along_axis(probabilities_NK, labels_N[:, None], axis=1)
    tied_before_NK = (probabilities_NK == own_N1) & (np.arange(probabilities_NK.shape[1]) < labels_N[:, None])
    ahead_N = ((probabilities_NK > own_N1) | tied_before_NK).sum(axis=1)
    return np.asarray((ahead_N < k) & ~np.isnan(probabilities_NK).any(axis=1))


def confusion(predicted_N: Labels, labels_N: Labels, classes: int) -> NDArray[np.int64]:
    """Counts `[K, K + 1]`: row = true class, column = predicted class, the last column = no prediction."""
    matrix = np.zeros((classes, classes + 1), dtype=np.int64)
    columns = np.where(predicted_N == NO_PREDICTION, classes, predicted_N)
    np.add.at(matrix, (labels_N, columns), 1)
    return matrix


def difference_interval(correct_N: NDArray[np.bool_], other_N: NDArray[np.bool_]) -> Interval:
    """95 % bootstrap interval of accuracy(correct) - accuracy(other) over the same videos (paired)."""
    videos = len(correct_N)
    if not videos:
        return Interval(0.0, 0.0)
    only, other_only = (correct_N & ~other_N).mean(), (~correct_N & other_N).mean()
    shares = [only, other_only, max(0.0, 1 - only - other_only)]
    drawn = np.random.default_rng(SEED).multinomial(videos, shares, size=RESAMPLES)
    low, high = np.percentile((drawn[:, 0] - drawn[:, 1]) / videos, [2.5, 97.5])
    return Interval(float(low), float(high))


@dataclass(frozen=True)
class McNemar:
    """Exact two-sided test of whether two classifiers are right equally often on the same videos."""

    only_first: int
    """Videos that only the first classifier gets right."""
    only_second: int
    """Videos that only the second one gets right."""
    p_value: float
    """Chance of a split at least this uneven if neither were better."""


def mcnemar(first_N: NDArray[np.bool_], second_N: NDArray[np.bool_]) -> McNemar:
    """McNemar's test by the exact binomial distribution, so that few disagreements are judged rightly too."""
    only_first, only_second = int((first_N & ~second_N).sum()), int((~first_N & second_N).sum())
    disagreements = only_first + only_second
    # Integers as long as they need to be: 2 ** disagreements overflows a float from 1,024 on.
    tail = sum(math.comb(disagreements, k) for k in range(min(only_first, only_second) + 1))
    return McNemar(only_first, only_second, min(1.0, 2 * tail / 2**disagreements))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One model against another on the same videos."""

    difference: float
    """Accuracy of the first minus that of the second, a fraction."""
    interval: Interval
    """95 %, by the paired bootstrap."""
    test: McNemar
    verdict: Verdict

    @property
    def text(self) -> str:
        """The difference in points, and the one thing that the interval and the test together allow to say of it."""
        found, p_value = f"{points(self.difference)} points", f"McNemar's exact test, {_p_value(self.test.p_value)}"
        match self.verdict:
            case "same":
                return f"{found}, the very same ones right"
            case "too few":
                return f"{found}, {TOO_FEW}"
            case "chance" if not self.difference:
                return f"{found}: as many right, though not the same ones"
            case "chance":
                return f"{found}, which chance may explain ({p_value})"
            case _:
                ends = f"95 % interval {points(self.interval.low)} to {points(self.interval.high)}"
                return f"{found} ({ends}; {p_value}), which chance hardly explains"


def _p_value(p_value: float) -> str:
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"


def points(fraction: float, decimals: int = 1) -> str:
    """A difference of fractions in points, with a true minus."""
    return f"{100 * fraction:+.{decimals}f}".replace("-", "−")


def compare(first_N: NDArray[np.bool_], second_N: NDArray[np.bool_]) -> Comparison:
    """Compare which videos two models get right.

    A difference counts only where the bootstrap interval leaves out 0 and McNemar's test is significant: with few
    videos that differ, the first alone claims too much.
    """
    videos, test, interval = len(first_N), mcnemar(first_N, second_N), difference_interval(first_N, second_N)
    difference = (test.only_first - test.only_second) / videos if videos else 0.0
    verdict: Verdict
    if videos < FEW_VIDEOS:
        verdict = "too few"
    elif not test.only_first + test.only_second:
        verdict = "same"
    elif test.p_value >= SIGNIFICANT or interval.low <= 0 <= interval.high:
        verdict = "chance"
    else:
        verdict = "better" if difference > 0 else "worse"
    return Comparison(difference=difference, interval=interval, test=test, verdict=verdict)
