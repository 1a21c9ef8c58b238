"""What the fused model is compared with, on the same test videos: its levels, `linear`, and the commonest class.

Every output takes its comparison from here, so that all judge by one test and say it in the same words.
"""

from typing import Final

from cache.aggregate import commonest_class
from cache.comparison import Comparison, compare
from fuse.results import Model, Results

LINEAR, COMMONEST = "linear", "commonest class"
"""Keys of `comparisons` that are no model of the report."""

NEAR: Final = 0.05
"""A macro accuracy that is no further above chance is near it."""


def commonest(results: Results) -> tuple[str, float] | None:
    """The commonest class of the training half, and what always naming it would get right of the test half.

    None where the classes are about equal in size, so that it is about chance.
    """
    dataset, classes = results.cache.dataset, results.classes
    learned = [each.label for each in dataset.half(results.split, "train") if each.label is not None]
    found = commonest_class(learned, results.labels, len(classes))
    return found and (classes[found[0]], found[1])


def comparisons(results: Results) -> dict[str, Comparison]:
    """The fused model against each other model, `linear` and always naming the commonest class, where they are."""
    fused = results.correct["fused"]
    found: dict[str, Comparison] = {
        model: compare(fused, results.correct[model]) for model in results.models if model != "fused"
    }
    if "fused" in results.linear_correct:
        found |= {LINEAR: compare(fused, results.linear_correct["fused"])}
    if named := commonest(results):
        found |= {COMMONEST: compare(fused, results.labels == results.classes.index(named[0]))}
    return found


def said(results: Results, name: str) -> str:
    """A comparison in words; against `linear` with both macro accuracies where the classes are of unequal size."""
    text = comparisons(results)[name].text
    if name == LINEAR and (macro := _macro_against_linear(results, "fused")):
        text += f"; {macro} %"
    return text


def against_linear(results: Results, model: Model) -> str:
    """A model's accuracy and that of `linear` in percent; of unequal classes both macro accuracies too."""
    pair = f"{100 * results.accuracy(model):.1f} against {100 * results.linear[model]:.1f}"
    return ", ".join(filter(None, (pair, _macro_against_linear(results, model))))


def _macro_against_linear(results: Results, model: Model) -> str:
    """Both macro accuracies in percent; empty where the classes are about equal in size."""
    if not commonest(results):
        return ""
    return f"macro {100 * results.macro(model):.1f} against {100 * results.linear_macro[model]:.1f}"


def lines(results: Results) -> list[str]:
    """The comparisons that the terminal shows, a line each."""
    found = [f"fused against the high level alone: {said(results, 'high')}"]
    if results.linear:
        found.append(f"fused against linear ({100 * results.linear['fused']:.1f} %): {said(results, LINEAR)}")
    if named := commonest(results):
        found.append(f"fused against always naming {named[0]} ({100 * named[1]:.1f} %): {said(results, COMMONEST)}")
    return found


def not_above_linear(results: Results) -> list[Model]:
    """Models that are not shown to be better than `linear` in their place; none where the videos are too few to say."""
    return [
        model
        for model, correct_N in results.linear_correct.items()
        if compare(results.correct[model], correct_N).verdict not in ("better", "too few")
    ]


def empty_accuracy(results: Results) -> str:
    """Why the fused accuracy tells nothing of unequal classes, as a clause; empty if it does, or for too few videos."""
    named, macro = commonest(results), results.macro("fused")
    if not named or (verdict := comparisons(results)[COMMONEST].verdict) == "too few":
        return ""
    if verdict != "better":
        name, share = named
        return f"always naming {name} gives {100 * share:.1f} %, and the accuracy is not shown to be more"
    near = f"the macro accuracy, {100 * macro:.1f} %, is near chance, {100 * results.chance:.1f} %"
    return near if macro <= results.chance + NEAR else ""
