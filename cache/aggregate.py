"""From clips to videos, from levels to one prediction, which predictions are right, and how certain that share is.

Pure arrays, no I/O.

Shapes: N clips or videos, K classes. The row of a video without features is NaN, stays NaN, and counts as wrong.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cache.common.errors import ScoreError
from cache.fingerprint import LEVELS, Level

PAPER_WEIGHTS: Final[dict[Level, float]] = {"high": 0.7, "mid": 0.2, "low": 0.1}
"""a, b and c of equation 10."""

MEAN_WEIGHTS: Final[dict[Level, float]] = {level: 1 / len(LEVELS) for level in LEVELS}
"""The plain mean of the levels, the other reading of the paper's text."""

NO_PREDICTION: Final = -1
"""Predicted class of a video whose row is NaN."""

FEW_VIDEOS: Final = 10
"""With fewer scored videos than this an accuracy says next to nothing, and every output says so."""

TOO_FEW: Final = "too few to judge"

UNEQUAL: Final = 0.1
"""Always naming the commonest class has to be this much more often right than chance to be compared with."""

_NORMAL_975: Final = 1.959963984540054
"""97.5th percentile of the standard normal distribution."""


def clips_to_videos(video_ids: ArrayLike, softmax: ArrayLike) -> tuple[list[str], NDArray[np.float64]]:
    """Mean softmax of each video's clips (paper, section 4.2): ids in order of first appearance, `[videos, K]` float64.

    `video_ids` is `[N]`, `softmax` `[N, K]`: one row per clip. Raises `ScoreError` if their lengths differ.
    """
    ids_N, softmax_NK = np.asarray(video_ids), np.asarray(softmax, dtype=np.float64)
    if softmax_NK.ndim != 2 or ids_N.shape != softmax_NK.shape[:1]:
        raise ScoreError(f"{ids_N.shape} video ids and softmax of shape {softmax_NK.shape}; expected [N] and [N, K]")
    unique, first, inverse = np.unique(ids_N, return_index=True, return_inverse=True)
    sums = np.zeros((len(unique), softmax_NK.shape[1]))
    np.add.at(sums, inverse, softmax_NK)
    means = sums / np.bincount(inverse, minlength=len(unique))[:, None]
    order = np.argsort(first)
    return [str(name) for name in unique[order]], means[order]


def fuse_levels(
    probabilities: Mapping[Level, NDArray[np.float64]], weights: Mapping[Level, float] = PAPER_WEIGHTS
) -> NDArray[np.float64]:
    """Weighted sum of the levels' probabilities (equation 10), `[videos, K]` float64.

    `probabilities` holds `[videos, K]` for every level that has a weight, rows in the same order of videos.
    Raises `ScoreError` if levels are missing or differ in shape, or if the weights do not sum to 1.
    """
    check_weights(weights)
    missing = [level for level in weights if level not in probabilities]
    if missing:
        raise ScoreError(f"no scores of level {', '.join(missing)}; train it first (`make train LEVEL={missing[0]}`)")
    shapes = {level: np.shape(probabilities[level]) for level in weights}
    if len(set(shapes.values())) > 1:
        raise ScoreError(f"the levels' probabilities have different shapes {shapes}; score the same videos with each")
    return np.asarray(sum(weight * probabilities[level] for level, weight in weights.items()))


def check_weights(weights: Mapping[Level, float]) -> None:
    """Raises `ScoreError` unless the weights are non-negative, of known levels, and sum to 1."""
    unknown = [level for level in weights if level not in LEVELS]
    if unknown:
        raise ScoreError(f"fusion weights name unknown levels {unknown}; the levels are {', '.join(LEVELS)}")
    values = np.fromiter(weights.values(), dtype=np.float64)
    if not (np.isfinite(values).all() and (values >= 0).all() and abs(values.sum() - 1) < 1e-6):
        raise ScoreError(f"fusion weights are {dict(weights)}; expected non-negative numbers that sum to 1")


def align(ids: Sequence[str], probabilities: NDArray[np.float64], expected: Sequence[str]) -> NDArray[np.float64]:
    """Rows of `probabilities` (one for each of `ids`) in the order of `expected`; NaN for videos that have none."""
    aligned = np.full((len(expected), probabilities.shape[1]), np.nan)
    row = {video: index for index, video in enumerate(ids)}
    present = [index for index, video in enumerate(expected) if video in row]
    aligned[present] = probabilities[[row[expected[index]] for index in present]]
    return aligned


def predicted(probabilities_NK: NDArray[np.float64]) -> NDArray[np.int64]:
    """Most probable class of each video `[N]`, the first one on a tie; NO_PREDICTION for a NaN row."""
    missing_N = np.asarray(np.isnan(probabilities_NK).any(axis=1))
    return np.where(missing_N, NO_PREDICTION, np.where(missing_N[:, None], 0, probabilities_NK).argmax(axis=1))


def correct(probabilities_NK: NDArray[np.float64], labels_N: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the most probable class of each video is its label `[N]`; never for a NaN row or a label below 0."""
    return np.asarray((predicted(probabilities_NK) == labels_N) & (labels_N >= 0))


def fraction(correct_N: NDArray[np.bool_]) -> float:
    """Share of videos that are right: the accuracy; 0 if there are no videos."""
    return float(correct_N.mean()) if len(correct_N) else 0.0


def per_class(correct_N: NDArray[np.bool_], labels_N: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """Share of each class's videos that are right `[K]`; NaN for a class without videos."""
    totals = np.bincount(labels_N[labels_N >= 0], minlength=classes)
    right = np.bincount(labels_N[correct_N], minlength=classes)
    return np.divide(right, totals, out=np.full(classes, np.nan), where=totals > 0)


def macro_accuracy(correct_N: NDArray[np.bool_], labels_N: NDArray[np.int64], classes: int) -> float:
    """Mean over the classes that have videos of the share of each one's that are right; 0 if there are no videos."""
    shares_K = per_class(correct_N, labels_N, classes)
    return 0.0 if np.isnan(shares_K).all() else float(np.nanmean(shares_K))


def commonest_class(learned: Sequence[int], labels_N: NDArray[np.int64], classes: int) -> tuple[int, float] | None:
    """The commonest of the labels `learned`, and the share of `labels_N` that it is: right without looking.

    None where that is about chance, 1 / `classes`, as with classes of about equal size.
    """
    if not learned:
        return None
    label = int(np.bincount(learned, minlength=classes).argmax())
    share = fraction(labels_N == label)
    return (label, share) if share >= 1 / classes + UNEQUAL else None


def log_loss(probabilities_NK: NDArray[np.float64], label_N: NDArray[np.int64]) -> float:
    """Returns the mean of -ln(probability of the right class) over the rows without NaN; 0 counts as 1e-12."""
    have_N = np.asarray(~np.isnan(probabilities_NK).any(axis=1))
    right_N = probabilities_NK[have_N, label_N[have_N]]
    return float(-np.log(np.maximum(right_N, 1e-12)).mean())


@dataclass(frozen=True)
class Interval:
    """A range that holds the true value with 95 % confidence; both ends are fractions."""

    low: float
    high: float


def wilson(right: int, videos: int) -> Interval:
    """95 % interval of the accuracy if `right` of `videos` are right: Wilson's score interval (1927).

    Unlike resampling it is not empty where all or none are right. Without videos it is [0, 1].

        3 of 3 -> 0.44 to 1
    """
    if not videos:
        return Interval(0.0, 1.0)
    share, square = right / videos, _NORMAL_975**2
    middle = (right + square / 2) / (videos + square)
    half = _NORMAL_975 * math.sqrt(videos * share * (1 - share) + square / 4) / (videos + square)
    return Interval(max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half)))


def accuracy_text(right: int, videos: int) -> str:
    """The accuracy with its interval in percent, and TOO_FEW where that is so.

    25 of 35 -> 71.4 %, 95 % interval 54.9 to 83.7
    """
    interval, share = wilson(right, videos), right / videos if videos else 0.0
    text = f"{100 * share:.1f} %, 95 % interval {100 * interval.low:.1f} to {100 * interval.high:.1f}"
    return f"{text}: {TOO_FEW}" if videos < FEW_VIDEOS else text


def search_weights(
    probabilities: Mapping[Level, NDArray[np.float64]], labels: NDArray[np.int64], step: float = 0.05
) -> dict[Level, float]:
    """Fusion weights that classify the most videos right, among all multiples of `step` that sum to 1.

    `probabilities` holds `[N, K]` for each level, `labels` is `[N]`: held-out training videos, never test videos.
    Ties go to the weights under which the true classes are most probable.
    """
    levels = [level for level in LEVELS if level in probabilities]
    parts = round(1 / step)
    splits = [each for each in product(range(parts + 1), repeat=len(levels)) if sum(each) == parts]
    stacked = np.stack([probabilities[level] for level in levels])

    def quality(split: tuple[int, ...]) -> tuple[int, float]:
        fused = np.tensordot(np.asarray(split) / parts, stacked, axes=1)
        likelihood = np.log(np.maximum(fused[np.arange(len(labels)), labels], 1e-12)).mean()
        return int(correct(fused, labels).sum()), float(likelihood)

    best = max(splits, key=quality)
    return {level: part / parts for level, part in zip(levels, best, strict=True)}
