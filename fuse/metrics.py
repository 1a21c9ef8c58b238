"""How good predictions are beyond plain accuracy (`cache.aggregate`). Pure arrays.

Shapes: N videos, K classes. A video without prediction is a NaN row of `probabilities`; it counts as wrong everywhere.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from cache.aggregate import NO_PREDICTION

Probabilities = NDArray[np.float64]
Labels = NDArray[np.int64]

TOP: Final = 5
"""Classes that a prediction is shown with."""


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
