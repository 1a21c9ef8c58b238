"""Sample predictions: which are chosen, and what the page and the figure show of them."""

import numpy as np

from fuse.report.samples import choose_mistakes, choose_samples, draw_samples, pictures_of
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
    frames = {samples[0].video: np.zeros((8, 30, 40, 3), np.uint8)}
    assert set(draw_samples(results, samples, frames, [])) == {
        f"samples{theme}.{kind}" for theme in ("", "-dark") for kind in ("svg", "png")
    }


def test_mistakes_are_the_most_confident_ones_and_those_of_frequent_confusions() -> None:
    results = made_up_results([f"class {index}" for index in range(40)], 2000)
    mistakes = choose_mistakes(results)
    sure = [each.top[0][1] for each in mistakes]
    assert sure == sorted(sure, reverse=True)
    assert not any(each.right for each in mistakes)
    wrong, fused = ~results.correct["fused"], results.probabilities["fused"]
    assert sure[:48] == sorted(fused[wrong].max(axis=1).tolist(), reverse=True)[:48]
    often = results.confused()
    pairs = [(each.label, each.top[0][0]) for each in mistakes]
    assert np.unravel_index(often.argmax(), often.shape) in pairs
    first = mistakes[0]
    assert set(first.votes) == {"low", "mid", "high"}
    index = results.video_ids.index(first.video)
    assert first.votes["high"][0] == results.probabilities["high"][index].argmax()


def test_pictures_of_few_frames_and_of_odd_sizes() -> None:
    sheets = {(8, 30, 40, 3): (160, 60), (5, 30, 40, 3): (160, 60), (1, 3, 200, 3): (200, 3), (8, 1, 208, 3): (832, 2)}
    for shape, sheet in sheets.items():
        pictures = pictures_of(np.zeros(shape, np.uint8))
        assert pictures.sheet_size == sheet
        assert pictures.strip.startswith("data:image/webp;base64,")
