"""Labels that are likely wrong, and classes that cannot be told apart, by predictions for held-out samples.

The model is the one of `train.linear`, a logistic regression on each sample's mean feature, for each level; equation 10
fuses them. Shapes: N samples, C channels, K classes. A sample that cannot be judged is a NaN row.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from cache.aggregate import PAPER_WEIGHTS, fuse_levels, wilson
from cache.common.progress import progress
from cache.fingerprint import Level
from fuse.calibration import scaled
from train.heads import scale_of
from train.linear import fit, one_thread
from train.split import FIFTHS

STRENGTH: Final = 0.1
"""Of the regression's penalty."""

TEMPERATURES: Final = np.geomspace(0.2, 2, 24).tolist()
WRONG_SHARES: Final = (0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.15, 0.2)
"""Shares of wrong labels that are tried."""

TOLD_APART: Final = 0.75
"""Two classes cannot be told apart if surely less of their samples than this are on the right side."""

_TOLERANCE: Final = 1e-4


def held_out(
    means: Mapping[Level, NDArray[np.float32]], label_N: NDArray[np.int64], group_N: NDArray[np.int64], classes: int
) -> NDArray[np.float64]:
    """Probabilities `[N, K]` of samples by fits that learned from no sample of their group.

    `means` are `[N, C]`; a label below 0 is not known. NaN for a sample without label, or of a class not in its fit.
    """
    fold_N = _folds(label_N, group_N)
    levels: dict[Level, NDArray[np.float64]] = {}
    with progress("held-out predictions", len(means) * FIFTHS, "fits") as bar:
        for level, mean_NC in means.items():
            levels[level] = np.full((len(label_N), classes), np.nan)
            for fold in range(FIFTHS):
                learned_N, held_N = (label_N >= 0) & (fold_N != fold), fold_N == fold
                if learned_N.any() and held_N.any():
                    with one_thread(if_small=mean_NC.size * classes):
                        levels[level][held_N] = _predicted(mean_NC, label_N, learned_N, held_N, classes)
                bar.update(len(levels) * FIFTHS - FIFTHS + fold + 1)
    # A cache of another program's features may have some of the levels.
    total = sum(PAPER_WEIGHTS[level] for level in levels)
    fused_NK = fuse_levels(levels, {level: PAPER_WEIGHTS[level] / total for level in levels})
    own_N = np.take_along_axis(fused_NK, np.maximum(label_N, 0)[:, None], axis=1)[:, 0]
    fused_NK[(label_N < 0) | ~(own_N > 0)] = np.nan
    return fused_NK


def _folds(label_N: NDArray[np.int64], group_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """`[N]`: which of FIFTHS each sample's group is in; each class's groups are spread over all of them."""
    order = np.lexsort((group_N, label_N))
    groups = dict.fromkeys(group_N[order].tolist())
    place = {group: number % FIFTHS for number, group in enumerate(groups)}
    return np.array([place[group] for group in group_N.tolist()], dtype=np.int64)


def _predicted(
    mean_NC: NDArray[np.float32],
    label_N: NDArray[np.int64],
    learned_N: NDArray[np.bool_],
    held_N: NDArray[np.bool_],
    classes: int,
) -> NDArray[np.float64]:
    """Probabilities of the held samples; 0 for classes that none of the learned ones has."""
    there_K, inside_N = np.unique(label_N[learned_N], return_inverse=True)
    x_NC = torch.from_numpy(mean_NC)
    deviation_C, mean_C = torch.std_mean(x_NC[learned_N], dim=0, correction=0)
    x_NC = (x_NC - mean_C) * scale_of(mean_C, deviation_C)
    weights_KC, bias_K = fit(x_NC[learned_N], torch.from_numpy(inside_N), len(there_K), STRENGTH, tolerance=_TOLERANCE)
    found_NK = np.zeros((int(held_N.sum()), classes))
    found_NK[:, there_K] = torch.softmax((x_NC[held_N] @ weights_KC.t() + bias_K).double(), dim=1).numpy()
    return found_NK


def doubts(probability_NK: NDArray[np.float64], label_N: NDArray[np.int64]) -> NDArray[np.float64]:
    """Probability that each label is wrong `[N]`; 0 for samples that cannot be judged.

    The model: a share of the labels is drawn at random among the classes, the others by the probabilities at some
    temperature. Share and temperature are those under which the labels are most probable; where random ones do not
    explain them better the share is 0. Then Bayes' rule.
    """
    doubt_N = np.zeros(len(label_N))
    judged = np.flatnonzero(~np.isnan(probability_NK).any(axis=1))
    known_NK, best = probability_NK[judged], -np.inf
    drawn = 1 / len(np.unique(label_N[judged])) if len(judged) else 0.0
    for temperature in TEMPERATURES:
        own_N = scaled(known_NK, temperature)[np.arange(len(judged)), label_N[judged]]
        for share in WRONG_SHARES:
            label_likelihood_N = (1 - share) * own_N + share * drawn
            if (likelihood := float(np.log(label_likelihood_N).sum())) > best:
                best, doubt_N[judged] = likelihood, share * drawn / label_likelihood_N
    return doubt_N


@dataclass(frozen=True)
class AlikeClasses:
    """Two classes that cannot be told apart."""

    first: int
    second: int
    samples: int
    """Of both."""
    share: float
    """Share of them whose own class is the more probable one of the two, the mean of both classes' shares."""


def alike_classes(
    probability_NK: NDArray[np.float64], label_N: NDArray[np.int64], group_N: NDArray[np.int64]
) -> list[AlikeClasses]:
    """Pairs of classes whose samples are on the right side less often than TOLD_APART, with 95 % confidence."""
    judged_N = ~np.isnan(probability_NK).any(axis=1)
    members = [np.flatnonzero(judged_N & (label_N == label)) for label in range(probability_NK.shape[1])]
    found = []
    for first, of_first in enumerate(members):
        for second, of_second in enumerate(members[:first]):
            if not (len(of_first) and len(of_second)):
                continue
            shares = [
                (probability_NK[own, label] > probability_NK[own, other]).mean()
                for own, label, other in ((of_first, first, second), (of_second, second, first))
            ]
            # Clips of one group are no independent evidence, nor are the many ones of one class for the other.
            share = float(np.mean(shares))
            groups = 2 * min(len(np.unique(group_N[own])) for own in (of_first, of_second))
            if wilson(round(share * groups), groups).high < TOLD_APART:
                found.append(AlikeClasses(second, first, len(of_first) + len(of_second), share))
    return sorted(found, key=lambda each: each.share)
