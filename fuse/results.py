"""What one split's report says, as data: computed once here, then rendered as tables, figures and a page.

Shapes: N test videos, K classes.

results.json: what other programs read of a report.

The mean over a dataset's splits, from the reports of each.
"""

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from cache.aggregate import (
    MEAN_WEIGHTS,
    NO_PREDICTION,
    PAPER_WEIGHTS,
    align,
    correct,
    fraction,
    fuse_levels,
    predicted,
)
from cache.common.errors import ScoreError
from cache.dataset import SPLITS, Dataset
from cache.fingerprint import LEVELS, Level
from cache.scores import ScoreTable
from fuse import metrics, paper
from fuse.scores import Choice, Source, check_against_cache, check_same

Model = Literal["low", "mid", "high", "fused", "mean", "searched"]

MODELS: Final[tuple[Model, ...]] = ("low", "mid", "high", "fused", "mean")
"""The three levels, equation 10, and the plain mean of the levels; every split has them."""

TITLES: Final[Mapping[Model, str]] = {
    "low": "Low RRN",
    "mid": "Mid RRN",
    "high": "High RRN",
    "fused": "MRRN (0.7 high + 0.2 mid + 0.1 low)",
    "mean": "MRRN (plain mean)",
    "searched": "MRRN (weights found on held-out training videos)",
}

RANDOM_PREFIX: Final = "random:"
"""How a fingerprint says that the backbone's weights were drawn at random."""

PAPER_BACKBONE: Final = ("imagenet1k_v1", "resnet34")
"""Weights and backbone that the paper used."""


PAPER_RECIPE: Final = "paper"


@dataclass(frozen=True, kw_only=True)
class Results:
    """Predictions of every model for every test video of a split, and where they come from."""

    source: Source
    split: int
    runs: Mapping[Level, Mapping[str, Any]]
    """What each level's scores say of the run that made them."""
    clips: int
    """Test clips that were scored."""
    video_ids: tuple[str, ...]
    """`[N]`: the test videos that the split lists, in id order, also those without features."""
    labels: NDArray[np.int64]
    """`[N]`"""
    probabilities: Mapping[Model, NDArray[np.float64]]
    """`[N, K]` for each model; NaN rows for videos without features."""
    searched_weights: Mapping[Level, float] | None = None
    """Fusion weights found on held-out training videos; None where no runs without them were trained."""

    @property
    def models(self) -> tuple[Model, ...]:
        """The models on hand: MODELS, and the one with searched weights where there are some."""
        return tuple(self.probabilities)

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return self.source.dataset.name

    @property
    def classes(self) -> tuple[str, ...]:
        """`[K]` names in label order."""
        return self.source.dataset.classes

    @property
    def pool(self) -> str:
        """Temporal pooling of the heads: mean or max."""
        return str(self.runs["high"].get("pool"))

    @property
    def weights(self) -> str:
        """What the backbone ran with: a name, `random:SEED`, or a file's name."""
        return str(self.source.identity.get("weights"))

    @cached_property
    def missing(self) -> dict[str, str]:
        """Test videos without scores, with the reason; they count as wrong."""
        chosen = predicted(self.probabilities["high"])
        ids = [video for video, choice in zip(self.video_ids, chosen, strict=True) if choice == NO_PREDICTION]
        return {video: self.source.failed.get(video, "no features in the cache") for video in ids}

    @cached_property
    def suspect(self) -> dict[str, str]:
        """Test videos whose decoding is in doubt, with the reason; they are used."""
        return {video: self.source.suspect[video] for video in self.video_ids if video in self.source.suspect}

    @cached_property
    def correct(self) -> dict[Model, NDArray[np.bool_]]:
        """`[N]` for each model: whether its first choice is right."""
        return {model: correct(self.probabilities[model], self.labels) for model in self.models}

    @cached_property
    def paper(self) -> dict[str, float | None]:
        """The paper's percentages for this dataset and pooling, None where it has none."""
        return {"searched": None, **paper.accuracy(self.dataset, self.pool)}

    def accuracy(self, model: Model) -> float:
        """Fraction of the split's test videos that are right; those without features are wrong."""
        return fraction(self.correct[model])

    def top5(self, model: Model) -> float | None:
        """Fraction whose true class is among the five most probable; None where five classes or fewer make it idle."""
        if len(self.classes) <= 5:
            return None
        return fraction(metrics.top_k_correct(self.probabilities[model], self.labels, 5))

    def confusion(self, model: Model = "fused") -> NDArray[np.int64]:
        """Counts `[K, K + 1]`: row = true class, column = predicted, the last one = no prediction."""
        return metrics.confusion(predicted(self.probabilities[model]), self.labels, len(self.classes))

    def per_class(self, model: Model) -> NDArray[np.float64]:
        """`[K]` fractions; NaN for a class without test videos."""
        return metrics.per_class(self.correct[model], self.labels, len(self.classes))


def evaluate(
    tables: Mapping[Level, ScoreTable],
    source: Source,
    split: int,
    searched_weights: Mapping[Level, float] | None = None,
) -> Results:
    """Fuse the levels' scores of a split's test videos; ScoreError lists what does not belong together.

    `searched_weights` are those of `fuse.scores.searched_weights`, where there are some.
    """
    check_same(tables)
    test = [video for video in source.dataset.half(split, "test") if video.label is not None]
    if not test:
        raise ScoreError(f"split {split} of {source.dataset.name!r} has no labelled test videos to score")
    expected = {video.id: int(video.label or 0) for video in test}
    check_against_cache(
        tables,
        identity=source.identity,
        classes=source.dataset.classes,
        expected=expected,
        have=source.video_ids,
    )
    levels: dict[Level, NDArray[np.float64]] = {}
    for level in LEVELS:
        ids, probabilities, _ = tables[level].videos()
        levels[level] = align(ids, probabilities, tuple(expected))
    return Results(
        source=source,
        split=split,
        runs={level: tables[level].run for level in LEVELS},
        clips=len(tables["high"].video_ids),
        video_ids=tuple(expected),
        labels=np.fromiter(expected.values(), dtype=np.int64),
        probabilities=_models(levels, searched_weights),
        searched_weights=searched_weights,
    )


def _models(
    levels: Mapping[Level, NDArray[np.float64]], searched: Mapping[Level, float] | None
) -> dict[Model, NDArray[np.float64]]:
    """Probabilities of each model, in the order in which they are shown."""
    models: dict[Model, NDArray[np.float64]] = {level: levels[level] for level in LEVELS}
    models["fused"] = fuse_levels(levels, PAPER_WEIGHTS)
    models["mean"] = fuse_levels(levels, MEAN_WEIGHTS)
    if searched is not None:
        models["searched"] = fuse_levels(levels, searched)
    return models


def caveats(results: Results) -> list[str]:
    """What keeps these figures from being the paper's, in words; empty for the paper's own setting."""
    return [
        *weights_caveats(results.source.identity),
        *_recipe_caveats(results),
        *subset_caveats(results.source.dataset, len(results.video_ids)),
        *_split_caveats(results),
        *_missing_caveats(results),
    ]


def weights_caveats(identity: Mapping[str, Any]) -> list[str]:
    """Says when the backbone was not the paper's ResNet-34 with ImageNet weights."""
    weights, backbone = str(identity.get("weights")), str(identity.get("backbone"))
    said = []
    if weights.startswith(RANDOM_PREFIX):
        said.append(
            f"weights: {weights} (random, never trained). The figures show that the pipeline runs, not what the method "
            "can do."
        )
    elif weights != PAPER_BACKBONE[0]:
        said.append(f"weights: {weights} (not the paper's ImageNet weights).")
    if backbone != PAPER_BACKBONE[1]:
        said.append(f"backbone: {backbone} (the paper used {PAPER_BACKBONE[1]}).")
    return said


def _recipe_caveats(results: Results) -> list[str]:
    """Says when the heads were not trained as the paper says."""
    recipes = sorted({str(run.get("recipe")) for run in results.runs.values()} - {PAPER_RECIPE})
    return [f"recipe: {', '.join(recipes)} (not the paper's training settings)."] if recipes else []


def subset_caveats(dataset: Dataset, test_videos: int) -> list[str]:
    """Says when the videos at hand are not the whole dataset."""
    subset = dataset.subset
    if subset is None:
        return []
    of_videos = f" of {subset.published_videos:,}" if subset.published_videos else ""
    of_classes = f" of {subset.published_classes}" if subset.published_classes else ""
    missing = f" {len(subset.missing):,} listed videos were not there." if subset.missing else ""
    return [
        f"subset: {len(dataset.videos):,}{of_videos} videos, {len(dataset.classes)}{of_classes} classes, "
        f"{test_videos:,} test videos.{missing} Not comparable with results on the whole dataset."
    ]


def _split_caveats(results: Results) -> list[str]:
    if results.dataset in paper.DATASETS and results.split != paper.SPLIT:
        return [f"split {results.split}: the paper's figures beside ours are of split {paper.SPLIT}."]
    return []


def _missing_caveats(results: Results) -> list[str]:
    if not results.missing:
        return []
    count, total = len(results.missing), len(results.video_ids)
    return [f"{count:,} of {total:,} test videos have no features and count as wrong."]


FORMAT = 1


@dataclass(frozen=True)
class Made:
    """When and by what an output was made."""

    version: str
    """Of this program."""
    date: str
    """UTC, to the second, ISO 8601."""


def made_now() -> Made:
    """This program's version and the time."""
    return Made(importlib.metadata.version("mrrn"), datetime.now(UTC).isoformat(timespec="seconds"))


def summarise(results: Results, notes: Sequence[str], made: Made) -> dict[str, Any]:
    """All figures as plain JSON values; accuracies and the paper's figures are fractions of the test videos."""
    return {
        "format": FORMAT,
        "notes": list(notes),
        "dataset": results.dataset,
        "split": results.split,
        "pool": results.pool,
        "videos": len(results.video_ids),
        "clips": results.clips,
        "missing_videos": _with_reasons(results.missing),
        "suspect_videos": _with_reasons(results.suspect),
        "accuracy": {model: results.accuracy(model) for model in MODELS},
        "top5": {model: results.top5(model) for model in MODELS},
        "interval95": {model: asdict(metrics.accuracy_interval(results.correct[model])) for model in MODELS},
        "fused_against_high": fused_against_high(results),
        "fusion_weights": dict(PAPER_WEIGHTS),
        "searched": _searched(results),
        "paper": _paper_fractions(results),
        "weights": results.weights,
        "subset": asdict(results.source.dataset.subset) if results.source.dataset.subset else None,
        "classes": list(results.classes),
        "per_class": {model: [_number(value) for value in results.per_class(model)] for model in MODELS},
        "confusion": results.confusion().tolist(),
        "fingerprint": {"identity": dict(results.source.identity), "environment": dict(results.source.environment)},
        "runs": {level: own_fields(run) for level, run in results.runs.items()},
        "made": asdict(made),
    }


def fused_against_high(results: Results) -> dict[str, Any]:
    """What fusing adds to the high level alone: points with interval, and McNemar's exact test."""
    fused, high = results.correct["fused"], results.correct["high"]
    return {
        "difference": results.accuracy("fused") - results.accuracy("high"),
        "interval95": asdict(metrics.difference_interval(fused, high)),
        "only_fused_right": (test := metrics.mcnemar(fused, high)).only_first,
        "only_high_right": test.only_second,
        "mcnemar_p": test.p_value,
    }


def _searched(results: Results) -> dict[str, Any] | None:
    """Fusion weights found on held-out training videos, and the test accuracy with them."""
    if results.searched_weights is None:
        return None
    return {"fusion_weights": dict(results.searched_weights), "accuracy": results.accuracy("searched")}


def _paper_fractions(results: Results) -> dict[str, float]:
    """The paper's figures as fractions; empty for a dataset that it does not use."""
    if results.dataset not in paper.DATASETS:
        return {}
    return {model: round(value / 100, 6) for model, value in results.paper.items() if value is not None}


def _with_reasons(reasons: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"id": video, "reason": reason} for video, reason in sorted(reasons.items())]


def own_fields(run: Mapping[str, Any]) -> dict[str, Any]:
    """What a run says of itself; the fingerprint, equal for all, stands apart."""
    return {name: value for name, value in run.items() if name != "fingerprint"}


def _number(value: float) -> float | None:
    """JSON has no NaN: a class without test videos has no accuracy."""
    return None if value != value else float(value)


def mean_over_splits(choice: Choice) -> str:
    """One line with each model's mean accuracy over the splits whose reports have this pooling and seed.

    Empty where fewer than two have. Reports of other caches than the last one's are left out.
    """
    summaries = [each for split in SPLITS if (each := _summary(choice, split)) is not None]
    wanted = (choice.pool, choice.seed)
    usable = [each for each in summaries if (each["pool"], each["runs"]["high"].get("seed")) == wanted]
    if len(usable) < 2 or any(each["fingerprint"] != usable[0]["fingerprint"] for each in usable):
        return ""
    means = {model: float(np.mean([each["accuracy"][model] for each in usable])) for model in MODELS}
    splits = ", ".join(str(each["split"]) for each in usable)
    return f"mean over splits {splits}: " + ", ".join(f"{model} {100 * mean:.2f} %" for model, mean in means.items())


def _summary(choice: Choice, split: int) -> dict[str, Any] | None:
    path = choice.workspace.report(choice.dataset, split) / "results.json"
    try:
        summary: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    return summary
