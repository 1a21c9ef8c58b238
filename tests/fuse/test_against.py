"""The fused model against `linear`, and against always naming the commonest class; every output says the same."""

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from cache.aggregate import commonest_class
from cache.fingerprint import LEVELS, Level
from cache.scores import ScoreTable
from fuse.against import comparisons, lines
from fuse.calibration import Calibration, Refusals, Scaled, reliability
from fuse.caveats import caveats
from fuse.report.html import Extras, html
from fuse.report.story import how_good, references, trust
from fuse.results import Results, evaluate
from fuse.summary import summarise
from tests.helpers.scores import MADE, hand_worked_results, made_up_results, make_scored_cache, make_table

UNEQUAL = {"learned": (200, 2, 2, 2, 1), "tested": (100, 4, 4, 4, 4)}


def tables(said: Sequence[int], labels: Sequence[int], classes: int) -> dict[Level, ScoreTable]:
    """Scores of all levels that name the classes `said`."""
    shares = np.full((classes, classes), 0.1 / classes) + np.eye(classes) * 0.9
    clips = {f"v{number:03}": [shares[each].tolist()] for number, each in enumerate(said)}
    named = {f"v{number:03}": label for number, label in enumerate(labels)}
    names = [f"class {label}" for label in range(classes)]
    return {level: make_table(level, clips, named, classes=names) for level in LEVELS}


def results_of(
    said: Sequence[int], linear: Sequence[int] | None, labels: Sequence[int], learned: Sequence[int]
) -> Results:
    """What heads that name `said`, and a baseline that names `linear`, get of videos with `labels`."""
    classes = len(learned)
    cache = make_scored_cache(
        {f"v{number:03}": label for number, label in enumerate(labels)},
        classes=[f"class {label}" for label in range(classes)],
        learned=learned,
        weights="imagenet1k_v1",
    )
    fingerprint = {"identity": dict(cache.identity), "environment": dict(cache.environment)}
    levels, baseline = tables(said, labels, classes), None if linear is None else tables(linear, labels, classes)
    for table in [*levels.values(), *(baseline or {}).values()]:
        table.run["fingerprint"] = fingerprint  # type: ignore[index]
    return evaluate(levels, cache, 1, baseline=baseline)


def wrong_at(labels: Sequence[int], places: range, classes: int) -> list[int]:
    """The labels, but at some places the next class."""
    return [(label + (number in places)) % classes for number, label in enumerate(labels)]


def outputs(results: Results) -> tuple[str, str]:
    """The page and results.json."""
    notes = caveats(results)
    return html(results, notes, MADE, Extras()), json.dumps(summarise(results, notes, MADE))


@pytest.mark.parametrize(("wrong_of_linear", "verdict"), [(2, "same"), (3, "chance"), (5, "chance"), (12, "better")])
def test_heads_beat_linear_only_by_more_than_chance_may_explain(wrong_of_linear: int, verdict: str) -> None:
    labels = [number % 5 for number in range(35)]
    results = results_of(
        wrong_at(labels, range(2), 5), wrong_at(labels, range(wrong_of_linear), 5), labels, learned=[7] * 5
    )
    compared = comparisons(results)["linear"]
    assert compared.verdict == verdict
    accuracy = f"{100 * (35 - wrong_of_linear) / 35:.1f}"
    assert f"a logistic regression on mean features ({accuracy} %) {compared.text}; " in how_good(results)
    marked = [note for note in caveats(results) if note.startswith("not shown to beat linear: low (94.3 against")]
    assert bool(marked) == (verdict != "better")
    page, summary = outputs(results)
    assert summarise(results, [], MADE)["fused_against"]["linear"]["verdict"] == verdict
    assert "against linear: " in page
    assert "macro" not in how_good(results)
    assert "commonest" not in page
    assert '"commonest_class": null' in summary


def test_too_few_videos_judge_no_head_against_linear() -> None:
    labels = [number % 3 for number in range(9)]
    results = results_of(labels, wrong_at(labels, range(5), 3), labels, learned=[7] * 3)
    assert "+55.6 points, too few to judge" in how_good(results)
    assert not any("linear" in note for note in caveats(results))
    assert caveats(results_of(wrong_at(labels, range(5), 3), labels, labels, [7] * 3)) == caveats(results)


def unequal(said: Sequence[int] | None = None) -> Results:
    """Heads on a few small classes and a large one, which they always name unless told otherwise."""
    labels = np.repeat(np.arange(5), UNEQUAL["tested"]).tolist()
    return results_of(said or [0] * len(labels), [0] * len(labels), labels, UNEQUAL["learned"])


def test_a_head_that_always_names_the_commonest_class_is_not_praised() -> None:
    results = unequal()
    assert "fused against always naming class 0 (86.2 %): +0.0 points, the very same ones right" in lines(results)
    assert dict(references(results))["commonest class"] == pytest.approx(100 / 116)
    assert how_good(results).startswith(
        "Always naming the commonest class gives 86.2 %; this is +0.0 points, the very same ones right; against a "
        "logistic regression on mean features (86.2 %) +0.0 points, the very same ones right; macro 20.0 against 20.0 %"
    )
    assert "times chance" not in outputs(results)[0]
    empty = "always naming class 0 gives 86.2 %, and the accuracy is not shown to be more"
    assert trust(results).startswith(f"Not by the accuracy: {empty}. Judge by the macro accuracy, 20.0 %")
    note = f"unequal classes: {empty}. Judge by the macro accuracy: 20.0 %, where chance is 20.0 %."
    assert note in caveats(results)
    summary = summarise(results, [], MADE)
    assert summary["commonest_class"] == {"name": "class 0", "accuracy": pytest.approx(100 / 116)}
    assert summary["fused_against"]["commonest class"]["verdict"] == "same"
    assert summary["linear_macro"]["fused"] == pytest.approx(0.2)


def test_a_balanced_heads_macro_accuracy_stands_beside_that_of_linear() -> None:
    labels = np.repeat(np.arange(5), UNEQUAL["tested"]).tolist()
    results = unequal([*([0] * 90), *([1] * 10), *labels[100:]])
    assert "; macro 98.0 against 20.0 %" in how_good(results)
    assert "fused (91.4 against 86.2, macro 98.0 against 20.0 %)" in " ".join(caveats(results))
    # 16 right that the commonest class is not, 10 wrong that it is: chance may explain it, the macro accuracy not.
    assert "unequal classes: always naming class 0 gives 86.2 %" in " ".join(caveats(results))
    assert "Judge by the macro accuracy: 98.0 %" in " ".join(caveats(results))


def test_a_head_for_unequal_classes_that_knows_them_all_has_no_warning() -> None:
    results = unequal(np.repeat(np.arange(5), UNEQUAL["tested"]).tolist())
    assert not any(note.startswith("unequal") for note in caveats(results))
    assert trust(results).startswith("Yes, within")


def test_a_macro_accuracy_near_chance_is_said_though_the_accuracy_beats_the_commonest_class() -> None:
    learned = [60, 20, *[1] * 28]
    labels = np.repeat(np.arange(30), learned).tolist()
    results = results_of([0] * 60 + [1] * 48, None, labels, learned)
    assert comparisons(results)["commonest class"].verdict == "better"
    assert "unequal classes: the macro accuracy, 6.7 %, is near chance, 3.3 %." in " ".join(caveats(results))


@pytest.mark.parametrize(
    ("learned", "tested", "found"),
    [
        ([0, 0, 1], [0, 0, 0, 1], (0, 0.75)),
        ([0, 0, 1], [0, 1, 1, 1], None),  # the commonest of those learned is not that of the test
        ([0, 1], [0, 1], None),
        ([], [0, 0], None),
    ],
)
def test_the_commonest_class_is_that_of_the_training_half(
    learned: list[int], tested: list[int], found: tuple[int, float] | None
) -> None:
    assert commonest_class(learned, np.array(tested), 2) == found


def test_without_linear_it_is_not_mentioned() -> None:
    page, summary = outputs(hand_worked_results())
    assert "against linear" not in page
    assert "linear" not in json.loads(summary)["fused_against"]


@pytest.mark.parametrize(
    ("found", "said"), [(1.0, "did not show that other"), (1.5, "are calibrated on held-out videos")]
)
def test_probabilities_that_stay_as_they_are_are_not_called_calibrated(found: float, said: str) -> None:
    temperatures: dict[Scaled, float] = {"low": 1.2, "mid": 1.2, "high": 1.2, "fused": found}
    heldout = Refusals(right=20, right_lost=1, wrong=5, wrong_refused=2)
    calibration = Calibration(temperatures=temperatures, threshold=0.4, heldout=heldout)
    results = replace(made_up_results(("a", "b", "c"), 60), calibration=calibration)
    assert said in trust(results)
    error, _ = reliability(results.probabilities["fused"], results.labels)
    assert (f"calibration error is {100 * error:.1f} points" in trust(results)) == (found == 1)
    assert ("(1: left as they were" in results.certainty) == (found == 1)
