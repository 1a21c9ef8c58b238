"""Accuracy, confusion, intervals and McNemar's test against figures worked out otherwise."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cache.aggregate import NO_PREDICTION, correct, predicted
from fuse import metrics

PROBABILITIES = np.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.4, 0.4, 0.2], [np.nan] * 3, [0.1, 0.5, 0.4]])
LABELS = np.array([0, 0, 1, 0, 2])


def test_first_choice_and_its_ties() -> None:
    assert predicted(PROBABILITIES).tolist() == [0, 2, 0, NO_PREDICTION, 1]
    assert metrics.top_k_correct(PROBABILITIES, LABELS, 1).tolist() == [True, False, False, False, False]
    assert metrics.top_k_correct(PROBABILITIES, LABELS, 2).tolist() == [True, True, True, False, True]


def test_a_video_without_prediction_is_wrong_even_among_the_top_k_of_k_classes() -> None:
    assert correct(PROBABILITIES, LABELS).tolist() == [True, False, False, False, False]
    assert metrics.top_k_correct(PROBABILITIES, LABELS, 5).tolist() == [True, True, True, False, True]


def test_confusion_counts_each_video_once_and_keeps_the_missing_apart() -> None:
    matrix = metrics.confusion(predicted(PROBABILITIES), LABELS, 3)
    assert matrix.tolist() == [[1, 0, 1, 1], [1, 0, 0, 0], [0, 1, 0, 0]]


@given(st.integers(1, 60), st.integers(2, 8), st.integers(0, 2**32 - 1))
def test_first_choice_agrees_with_the_top_one(videos: int, classes: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    probabilities = generator.integers(0, 4, (videos, classes)) / 4  # many ties
    labels = generator.integers(0, classes, videos)
    right = metrics.top_k_correct(probabilities, labels, 1)
    np.testing.assert_array_equal(right, correct(probabilities, labels))
    np.testing.assert_array_equal(right, predicted(probabilities) == labels)
    matrix = metrics.confusion(predicted(probabilities), labels, classes)
    assert matrix.sum() == videos
    assert np.trace(matrix[:, :classes]) == right.sum()
