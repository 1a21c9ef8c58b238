"""The sentences that the page begins with: how good the fused model is, where it fails, and whether to trust it."""

from typing import Final

from cache.aggregate import FEW_VIDEOS
from extract.network.weights import is_untrained
from fuse.against import COMMONEST, LINEAR, commonest, comparisons, empty_accuracy, said
from fuse.calibration import reliability
from fuse.report.tables import NONE
from fuse.results import TITLES, Model, Results

WIDE: Final = 0.1
"""Half width of an interval from which on it is called wide."""

POOR: Final = 0.5
"""Accuracy below which a class is named as one that fails."""


def percent(fraction: float | None, decimals: int = 1) -> str:
    """A fraction as percent, without the sign."""
    return NONE if fraction is None or fraction != fraction else f"{100 * fraction:.{decimals}f}"


def best_level(results: Results) -> Model:
    """The single level with the best accuracy; of equal ones the deepest."""
    levels: tuple[Model, ...] = ("high", "mid", "low")
    return max(levels, key=results.accuracy)


def references(results: Results) -> list[tuple[str, float]]:
    """What the accuracy is compared with, and its own accuracy, a fraction each."""
    best = best_level(results)
    named, printed = commonest(results), results.figures("fused")["paper"]
    found = {
        "chance": results.chance,
        COMMONEST: named and named[1],
        LINEAR: results.linear.get("fused"),
        f"{TITLES[best]} alone": results.accuracy(best),
        "the paper": None if results.cache.dataset.subset else printed,
    }
    known = [(name, value) for name, value in found.items() if value is not None]
    # In the order in which the labels beside their marks cross the fewest of the others' marks.
    return sorted(known, key=lambda each: (each[1] < 0.5, abs(each[1] - 0.5)))


def how_good(results: Results) -> str:
    """The accuracy against chance or the commonest class, the linear baseline and the best single level."""
    accuracy, best = results.accuracy("fused"), best_level(results)
    times = accuracy / results.chance
    against = f"Chance is {percent(results.chance)} %, so this is {times:.1f} times chance"
    if accuracy <= results.chance:
        against = f"Naming a class at random gives {percent(results.chance)} %: this is no better than chance"
    if named := commonest(results):
        against = f"Always naming the commonest class gives {percent(named[1])} %; this is {said(results, COMMONEST)}"
    if (linear := results.linear.get("fused")) is not None:
        against += f"; against a logistic regression on mean features ({percent(linear)} %) {said(results, LINEAR)}"
    compared = comparisons(results)[best]
    if compared.verdict == "same":
        level = f"fusing changes nothing against the {best} level alone"
    elif compared.verdict == "worse":
        level = f"the {best} level alone is better, {percent(results.accuracy(best))} %: fused {compared.text}"
    else:
        level = f"against the best single level, {best}, fusing brings {compared.text}"
    return f"{against}; {level}."


def where_it_fails(results: Results) -> str:
    """The weakest classes and the most frequent confusion."""
    shares, totals = results.per_class("fused"), results.confusion().sum(axis=1)
    tested = [index for index in range(len(results.classes)) if totals[index]]
    order = sorted(tested, key=lambda index: (shares[index], -totals[index]))
    weak = [index for index in order if shares[index] < POOR]
    wrong_KK, noun = results.confused(), results.noun
    if not wrong_KK.any():
        return f"None of the test {noun} was taken for another class."
    row, column = divmod(int(wrong_KK.argmax()), len(results.classes))
    often = " most often" if wrong_KK[row, column] > 1 else ""
    pair = (
        f"{results.classes[row]} is taken for {results.classes[column]}{often} "
        f"({wrong_KK[row, column]} of {totals[row]} {noun})."
    )
    if not weak:
        worst = f"{results.classes[order[0]]}, {percent(shares[order[0]], 0)} %"
        return f"No class is below half; the weakest is {worst}. {pair}"
    named = ", ".join(
        f"{results.classes[index]} ({percent(shares[index], 0)} % of {totals[index]})" for index in weak[:3]
    )
    more = f" and {len(weak) - 3} more" if len(weak) > 3 else ""
    return f"Less than half is recognised of {named}{more}: {len(weak)} of {len(tested)} classes. {pair}"


def trust(results: Results) -> str:
    """Whether the accuracy, and the probabilities, can be believed."""
    videos, interval = len(results.video_ids), results.interval("fused")
    half, noun = (interval.high - interval.low) / 2, results.noun
    if is_untrained(results.weights):
        text = "Not as a measure of the method: the backbone was never trained. The run shows that the pipeline works"
    elif videos < FEW_VIDEOS:
        text = f"Not yet: {videos} test {noun} are too few to tell skill from luck. Add test {noun}"
    elif empty := empty_accuracy(results):
        text = f"Not by the accuracy: {empty}. Judge by the macro accuracy, {percent(results.macro('fused'))} %"
    elif half > WIDE:
        text = f"As a rough figure: with {videos} test {noun} the interval is wide, ± {percent(half, 0)} points"
    else:
        text = f"Yes, within ± {percent(half)} points, what {videos:,} test {noun} allow"
    calibration = results.calibration
    if calibration is None:
        sure = "the probabilities are not calibrated, so read them as an order, not as chances"
    elif calibration.temperatures["fused"] == 1:
        error, _ = reliability(results.probabilities["fused"], results.labels)
        sure = (
            f"held-out {noun} did not show that other probabilities would be better than these, whose calibration "
            f"error is {percent(error)} points"
        )
    else:
        sure = f"the probabilities are calibrated on held-out {noun}"
    part = " Published figures are of all videos, and these are a part of them." if results.cache.dataset.subset else ""
    return f"{text}; {sure}.{part}"
