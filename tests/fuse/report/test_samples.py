"""Sample predictions: which are chosen, and what the page and the figure show of them."""

import numpy as np

from fuse.report.samples import choose_samples, data_uris, draw_samples
from fuse.results import evaluate
from tests.helpers.scores import LABELS, hand_worked_tables, made_up_results, make_scored_cache


def test_samples_are_right_and_wrong_ones_of_different_classes() -> None:
    results = made_up_results([f"class {index}" for index in range(40)], 400)
    samples = choose_samples(results)
    assert [sample.right for sample in samples] == [True] * 4 + [False] * 4
    assert len({sample.label for sample in samples[:4]}) == 4
    index = {video: number for number, video in enumerate(results.video_ids)}
    for sample in samples:
        probabilities = results.probabilities["fused"][index[sample.video]]
        assert sample.top[0][1] == probabilities.max()
        assert sample.label in dict(sample.top)
    assert samples == choose_samples(results)


def test_samples_of_nothing_right_or_wrong() -> None:
    results = evaluate(hand_worked_tables(), make_scored_cache(LABELS), 1)
    samples = choose_samples(results)
    assert [sample.right for sample in samples] == [True, True]
    frames = {samples[0].video: np.zeros((3, 30, 40, 3), np.uint8)}
    shown = data_uris(frames)
    assert [len(shown.get(sample.video, [])) for sample in samples] == [3, 0]
    assert set(draw_samples(results, samples, frames, [])) == {
        f"samples{theme}.{kind}" for theme in ("", "-dark") for kind in ("svg", "png")
    }
