"""Whether one model is better than another on the same videos: paired bootstrap and McNemar's test. Pure arrays.

Shapes: N videos.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from cache.aggregate import FEW_VIDEOS, TOO_FEW, Interval

RESAMPLES: Final = 10_000
"""Bootstrap resamples: enough that the interval's ends do not move by a tenth of a point between seeds."""

SEED: Final = 0

SIGNIFICANT: Final = 0.05
"""Below this p-value a difference is taken for more than chance, as with 95 % intervals."""

Verdict = Literal["better", "worse", "chance", "same", "too few"]
"""What can be said of one model against another; `chance`: the difference may be chance."""


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
