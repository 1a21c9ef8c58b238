"""What qualifies a report's figures, as sentences: what is not the paper's, and what makes them worth less."""

from collections.abc import Mapping
from typing import Any, Final

from cache.aggregate import FEW_VIDEOS, TOO_FEW
from cache.fingerprint import is_imported
from extract.network.weights import is_untrained
from extract.settings import IMAGENET, as_json, settings_in
from fuse import paper
from fuse.against import against_linear, empty_accuracy, not_above_linear
from fuse.results import Results
from train.config import WATCHED
from train.recipes import Recipe

PAPER_RECIPE: Final = Recipe().name
"""The recipe whose every field is the paper's."""


def caveats(results: Results) -> list[str]:
    """What to know before the figures are compared or believed, a sentence each; empty for the paper's own setting."""
    found = weights_caveats(results.cache.identity)
    recipes = sorted({_recipe(run) for run in results.runs.values()} - {PAPER_RECIPE})
    if recipes:
        found.append(f"recipe: {', '.join(recipes)} (not the paper's training settings).")
    if results.runs["high"].get("watch"):
        found.append(
            "watched: the heads were trained without a fifth of each class's training groups, which gave the held-out "
            "curves; heads trained on all of them may be better."
        )
    dataset, test_videos = results.cache.dataset, len(results.video_ids)
    found += settings_caveats(results.cache.identity)
    if subset := dataset.subset:
        of_videos = f" of {subset.published_videos:,}" if subset.published_videos else ""
        of_classes = f" of {subset.published_classes}" if subset.published_classes else ""
        missing = f" {len(subset.missing):,} listed videos were not there." if subset.missing else ""
        found.append(
            f"subset: {len(dataset.videos):,}{of_videos} videos, {len(dataset.class_counts())}{of_classes} classes, "
            f"{test_videos:,} test {dataset.noun}.{missing} Not comparable with results on the whole dataset."
        )
    if results.dataset in paper.DATASETS and results.split != paper.SPLIT:
        found.append(f"split {results.split}: the paper's figures beside ours are of split {paper.SPLIT}.")
    if note := results.clips_note:
        found.append(f"{note}.")
    found += [f"classes: {note}." for note in dataset.one_sided_notes(results.split)]
    if results.missing:
        found.append(
            f"missing: {len(results.missing):,} of {test_videos:,} test {dataset.noun} have no features and count as "
            "wrong."
        )
    if results.copies:
        test, learned = next(iter(results.copies.items()))
        found.append(
            f"copies: {len(results.copies):,} of {test_videos:,} test {dataset.noun} are copies of training "
            f"{dataset.noun} (equal features; {test} of {learned}), so the accuracy is too high for new ones. `mrrn "
            "doctor` lists them, and finds copies that were encoded anew."
        )
    if unproven := not_above_linear(results):
        pairs = [f"{model} ({against_linear(results, model)} %)" for model in unproven]
        found.append(
            f"not shown to beat linear: {', '.join(pairs)}. A logistic regression on each {dataset.noun[:-1]}'s "
            "mean feature, trained in seconds, may do as well."
        )
    if empty := empty_accuracy(results):
        found.append(
            f"unequal classes: {empty}. Judge by the macro accuracy: {100 * results.macro('fused'):.1f} %, where "
            f"chance is {100 * results.chance:.1f} %."
        )
    if test_videos < FEW_VIDEOS:
        found.append(f"test {dataset.noun}: {test_videos}, {TOO_FEW}: accuracies and differences may be chance.")
    return found


def _recipe(run: Mapping[str, Any]) -> str:
    """The recipe of a run, and what it changes of that: `paper with l4`."""
    recipe = str(run.get("recipe"))
    changed = str(run.get("variant") or "").removeprefix(recipe).removesuffix(WATCHED).strip("-")
    return f"{recipe} with {changed}" if changed else recipe


def weights_caveats(identity: Mapping[str, Any]) -> list[str]:
    """The caveats of `caveats` that say that the backbone was not the paper's ResNet-34 with ImageNet weights."""
    weights, backbone = str(identity.get("weights")), str(identity.get("backbone"))
    if is_imported(identity):
        return [f"features: {backbone} (another program made them; the paper used {paper.BACKBONE})."]
    found = []
    if is_untrained(weights):
        found.append(
            f"weights: {weights} (random, never trained). The figures show that the pipeline runs, not what the method "
            "can do."
        )
    elif weights != IMAGENET:
        found.append(f"weights: {weights} (not the paper's ImageNet weights).")
    if backbone != paper.BACKBONE:
        found.append(f"backbone: {backbone} (the paper used {paper.BACKBONE}).")
    return found


def settings_caveats(identity: Mapping[str, Any]) -> list[str]:
    """A sentence for each setting of the extraction that is not the default, and that the features depend on."""
    changed = {
        each.name: identity[each.name]
        for each in settings_in("identity")
        if each.name not in ("backbone", "views_seed")
        and as_json(each.default) != identity.get(each.name, as_json(each.default))
    }
    said = {
        "max_frames": "only the first {} frames of each video were used.",
        "fps": "frames were taken at {} a second at most.",
    }
    return [
        f"{name.replace('_', '-')}: " + said.get(name, "{} (not the default).").format(text_of(value))
        for name, value in changed.items()
    ]


def text_of(value: Any) -> str:
    """A setting's value, of mappings and lists each item."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {text_of(inner)}" for name, inner in value.items())
    return ", ".join(map(text_of, value)) if isinstance(value, list | tuple) else str(value)
