"""How sure a prediction may be: temperatures, reliability, and when the answer is "none of these". Pure arrays.

Everything is chosen on held-out training videos, never on test videos. Shapes: N videos, K classes.

A temperature T turns the probabilities p of a video into p^(1/T), normalised: of a softmax that is dividing its logits
by T (Guo et al., arXiv 1706.04599). It moves no class before another; callers take the order from p itself, so that
rounding cannot either.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from cache.aggregate import FEW_VIDEOS, correct, fuse_levels
from cache.fingerprint import LEVELS, Level

Probabilities = NDArray[np.float64]
Labels = NDArray[np.int64]

Scaled = Literal["low", "mid", "high", "fused", "searched"]
SCALED: Final[tuple[Scaled, ...]] = get_args(Scaled)
"""What can have a temperature: each level's head, their fusion, and that by searched weights."""

_ALWAYS: Final = set(SCALED) - {"searched"}

LEAST: Final = 0.05
MOST: Final = 20.0
"""Temperatures lie between these."""

LOST: Final = 0.05
"""Share of the right answers that may become "none of these", at most."""

BINS: Final = 10
"""Bins of equal width that confidences are sorted into."""

_CHI_SQUARED_95: Final = 3.841458820694124
"""95th percentile of the chi-squared distribution with one degree of freedom."""

_SMALLEST: Final = 1e-12
"""Stands for smaller probabilities, whose logarithm says nothing."""


@dataclass(frozen=True, kw_only=True)
class Refusals:
    """What a threshold does to some videos."""

    right: int
    """Videos whose first choice is right."""
    right_lost: int
    """Those of them that are answered "none of these"."""
    wrong: int
    """Videos whose first choice is wrong."""
    wrong_refused: int
    """Those of them that are answered "none of these"."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was found on held-out videos."""

    temperatures: Mapping[Scaled, float]
    threshold: float
    """Fused probability, at its temperature, below which the answer is "none of these"."""
    heldout: Refusals
    """What the threshold does to the videos that it was chosen on."""

    @property
    def videos(self) -> int:
        """Held-out videos."""
        return self.heldout.right + self.heldout.wrong

    def text(self, noun: str) -> str:
        """What was found on the samples, which are called `noun`."""
        each = ", ".join(f"{name} {found:.2f}" for name, found in self.temperatures.items())
        each += " (1: left as they were, as no other was shown to be better)" * (1 in self.temperatures.values())
        lost = f"{self.heldout.right_lost:,} of {self.heldout.right:,} right answers"
        refused = f"{self.heldout.wrong_refused:,} of {self.heldout.wrong:,} wrong ones"
        return (
            f"calibrated by temperatures {each}, found on {self.videos:,} held-out training {noun}; "
            f'below {100 * self.threshold:.0f} % "none of these", chosen to lose at most {100 * LOST:.0f} % of the '
            f"right answers there ({lost}, {refused})"
        )

    @classmethod
    def from_json(cls, value: Any) -> "Calibration":
        """The inverse of `dataclasses.asdict`. Raises `ValueError` unless all is there and can be."""
        found = msgspec.convert(value, cls)
        if not found.temperatures.keys() >= _ALWAYS:
            raise ValueError(f"temperatures of {', '.join(found.temperatures)}; expected {', '.join(SCALED)}")
        if not (all(LEAST <= each <= MOST for each in found.temperatures.values()) and 0 <= found.threshold <= 1):
            raise ValueError(f"temperatures {dict(found.temperatures)}, threshold {found.threshold}: out of range")
        return found


def calibrate(
    levels: Mapping[Level, Probabilities],
    labels_N: Labels,
    fusion_weights: Mapping[Level, float],
    searched_weights: Mapping[Level, float] | None = None,
) -> Calibration | None:
    """Temperatures and threshold from held-out videos `[N, K]` for each level; None for too few of them."""
    if len(labels_N) < FEW_VIDEOS:
        return None
    fused = fuse_levels(levels, fusion_weights)
    models: dict[Scaled, Probabilities] = {**{level: levels[level] for level in LEVELS}, "fused": fused}
    if searched_weights is not None:
        models["searched"] = fuse_levels(levels, searched_weights)
    found = {name: temperature(each, labels_N) for name, each in models.items()}
    confidence_N = scaled(fused, found["fused"]).max(axis=1)
    right_N = correct(fused, labels_N)
    chosen = threshold(confidence_N, right_N)
    return Calibration(temperatures=found, threshold=chosen, heldout=refusals(confidence_N, right_N, chosen))


def temperature(probabilities_NK: Probabilities, labels_N: Labels) -> float:
    """The temperature, LEAST to MOST, under which the labels are most probable; 1 if that is no better than chance.

    It counts only if a likelihood-ratio test rejects T = 1 at 5 %: few videos would else make things worse. As in
    Platt scaling a label counts as (N + 1) / (N + 2) and not as 1, so that no number of right answers makes certainty.
    """
    videos, classes = probabilities_NK.shape
    log_NK = np.log(np.maximum(probabilities_NK, _SMALLEST))
    target_NK = np.full_like(log_NK, 1 / (videos + 2) / max(classes - 1, 1))
    target_NK[np.arange(videos), labels_N] = (videos + 1) / (videos + 2)
    wanted = (target_NK * log_NK).sum()

    def slope(inverse: float) -> float:
        """Derivative of the cross-entropy by 1 / T; it grows with 1 / T."""
        return float((_softmax(inverse * log_NK) * log_NK).sum() - wanted)

    low, high = 1 / MOST, 1 / LEAST
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if slope(middle) >= 0 else (middle, high)
    gained = _cross_entropy(log_NK, target_NK) - _cross_entropy(high * log_NK, target_NK)
    return 1 / high if 2 * gained > _CHI_SQUARED_95 else 1.0


def _cross_entropy(logits_NK: NDArray[np.float64], target_NK: Probabilities) -> float:
    from_top_NK = logits_NK - logits_NK.max(axis=1, keepdims=True)
    return float((target_NK * (np.log(np.exp(from_top_NK).sum(axis=1, keepdims=True)) - from_top_NK)).sum())


def scaled(probabilities_NK: Probabilities, temperature: float) -> Probabilities:
    """The probabilities at a temperature, `[N, K]` or `[K]`; NaN rows stay NaN."""
    return _softmax(np.log(np.maximum(probabilities_NK, _SMALLEST)) / temperature)


def _softmax(logits_NK: NDArray[np.float64]) -> Probabilities:
    powers_NK = np.exp(logits_NK - logits_NK.max(axis=-1, keepdims=True))
    return np.asarray(powers_NK / powers_NK.sum(axis=-1, keepdims=True))


def threshold(confidence_N: NDArray[np.float64], right_N: NDArray[np.bool_]) -> float:
    """The highest threshold below which no more than the share LOST of the right answers lie; 0 if none is right."""
    right = np.sort(confidence_N[right_N])
    return float(right[int(LOST * len(right))]) if len(right) else 0.0


def refusals(confidence_N: NDArray[np.float64], right_N: NDArray[np.bool_], threshold: float) -> Refusals:
    """What a threshold does to videos; those without prediction (NaN) are left out."""
    refused_N, wrong_N = confidence_N < threshold, ~right_N & ~np.isnan(confidence_N)
    return Refusals(
        right=int(right_N.sum()),
        right_lost=int((right_N & refused_N).sum()),
        wrong=int(wrong_N.sum()),
        wrong_refused=int((wrong_N & refused_N).sum()),
    )


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Videos of about the same confidence, the probability of the first choice."""

    low: float
    high: float
    """Confidences in [low, high), of the last bin also 1."""
    videos: int
    confidence: float
    """Mean confidence of the bin's videos."""
    accuracy: float
    """Share of them that is right."""


def reliability(probabilities_NK: Probabilities, labels_N: Labels) -> tuple[float, tuple[Bin, ...]]:
    """Expected calibration error, a fraction, and the bins that hold videos; those without prediction are left out.

    The error is the mean distance of the bins' confidence from their accuracy, weighted by their videos.
    """
    have_N = ~np.isnan(probabilities_NK).any(axis=1)
    confidence_N, right_N = probabilities_NK[have_N].max(axis=1), correct(probabilities_NK, labels_N)[have_N]
    bin_N = np.minimum((confidence_N * BINS).astype(int), BINS - 1)
    bins = tuple(
        Bin(
            low=number / BINS,
            high=(number + 1) / BINS,
            videos=int(inside_N.sum()),
            confidence=float(confidence_N[inside_N].mean()),
            accuracy=float(right_N[inside_N].mean()),
        )
        for number in range(BINS)
        for inside_N in [bin_N == number]
        if inside_N.any()
    )
    error = sum(each.videos * abs(each.confidence - each.accuracy) for each in bins) / max(len(confidence_N), 1)
    return error, bins
