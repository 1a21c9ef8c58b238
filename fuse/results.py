"""A report as data: predictions of every model for one split, what qualifies them, and results.json.

Computed once here, then rendered as tables, figures and a page by `fuse.report`. Shapes: N test videos, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from cache.aggregate import (
    FEW_VIDEOS,
    MEAN_WEIGHTS,
    NO_PREDICTION,
    PAPER_WEIGHTS,
    TOO_FEW,
    Interval,
    align,
    correct,
    fraction,
    fuse_levels,
    log_loss,
    macro_accuracy,
    per_class,
    predicted,
    search_weights,
    wilson,
)
from cache.clips import ClipRule
from cache.common.errors import ScoreError
from cache.fingerprint import LEVELS, Level, is_imported
from cache.scores import ScoreTable
from extract.network.weights import is_untrained
from extract.settings import IMAGENET, as_json, settings_in
from fuse import metrics, paper
from fuse.calibration import SCALED, Calibration, Refusals, Scaled, calibrate, refusals, reliability, scaled
from fuse.scores import Epoch, Heldout, ScoredCache, check_against_cache, check_same
from train.config import version_of
from train.recipes import Recipe

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

PAPER_RECIPE: Final = Recipe().name
"""The recipe whose every field is the paper's."""

FORMAT: Final = 1
"""Format of results.json."""

LENGTHS: Final = 5
"""Parts of about as many videos in which the accuracy is given by length."""

GROUPED: Final = 2
"""Videos from which on a recording is a group whose accuracy is worth a line."""


@dataclass(frozen=True)
class Portion:
    """Some of the test videos, and how many of them the fused model gets right."""

    name: str
    videos: int
    right: int

    @property
    def accuracy(self) -> float:
        """A fraction."""
        return self.right / self.videos

    @property
    def interval(self) -> Interval:
        """95 % interval of the accuracy, Wilson's."""
        return wilson(self.right, self.videos)


@dataclass(frozen=True, kw_only=True)
class Results:
    """Predictions of every model for every test video of a split, and where they come from."""

    cache: ScoredCache
    split: int
    runs: Mapping[Level, Mapping[str, Any]]
    """What each level's scores say of the run that made them, without the fingerprint, which is the cache's."""
    clips: int
    """Test clips that were scored."""
    video_ids: tuple[str, ...]
    """`[N]`: the test videos that the split lists, in id order, also those without features."""
    labels: NDArray[np.int64]
    """`[N]`"""
    probabilities: Mapping[Model, NDArray[np.float64]]
    """`[N, K]` for each model, in the order in which they are shown; NaN rows for videos without features."""
    searched_weights: Mapping[Level, float] | None = None
    """Fusion weights found on held-out training videos; None if no runs without them were trained."""
    calibration: Calibration | None = None
    """Temperatures and threshold found on them; None without such runs, or with too few videos."""
    curves: Mapping[Level, Sequence[Epoch]] = field(default_factory=dict)
    """The epochs of each level's training."""
    linear: Mapping[Model, float] = field(default_factory=dict)
    """Accuracy of the baseline `linear` in the place of each model's heads; empty if it was not trained beside them."""

    @property
    def models(self) -> tuple[Model, ...]:
        """MODELS, and `searched` if there are searched weights."""
        return tuple(self.probabilities)

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return self.cache.dataset.name

    @property
    def classes(self) -> tuple[str, ...]:
        """`[K]` names in label order."""
        return self.cache.dataset.classes

    @property
    def pool(self) -> str:
        """Temporal pooling of the heads: mean, max or attention."""
        return str(self.runs["high"].get("pool"))

    @property
    def unread_share(self) -> float | None:
        """Share of the scored videos' frames that are in no clip; None if the scores do not say, as older ones."""
        frames, unread = (self.runs["high"].get(name) for name in ("frames", "unread_frames"))
        return unread / frames if type(frames) is int and type(unread) is int and 0 <= unread <= frames > 0 else None

    @property
    def clip_rule(self) -> ClipRule:
        """How the videos were cut into clips. Raises `ScoreError` if the scores do not say."""
        try:
            return msgspec.convert(self.runs["high"]["clips"], ClipRule)
        except (KeyError, msgspec.ValidationError) as error:
            raise ScoreError(f"the scores' clip rule cannot be read: {error}; train again") from error

    @property
    def clips_note(self) -> str:
        """What has to be said of the frames that are in no clip; may be empty."""
        if self.unread_share is None:
            return ""
        run, whose = self.runs["high"], f"the scored {self.cache.dataset.noun}'"
        return self.clip_rule.note(run["unread_frames"], run["frames"], whose)

    @property
    def weights(self) -> str:
        """What the backbone ran with: a name, `random:SEED`, or a file's name."""
        return str(self.cache.identity.get("weights"))

    @cached_property
    def missing(self) -> dict[str, str]:
        """Test videos without scores, with the reason; they count as wrong."""
        chosen_N = predicted(self.probabilities["high"])
        ids = [video for video, choice in zip(self.video_ids, chosen_N, strict=True) if choice == NO_PREDICTION]
        return {video: self.cache.failed.get(video, "no features in the cache") for video in ids}

    @cached_property
    def suspect(self) -> dict[str, str]:
        """Test videos whose decoding is in doubt, with the reason; they are used."""
        return {video: self.cache.suspect[video] for video in self.video_ids if video in self.cache.suspect}

    @cached_property
    def copies(self) -> dict[str, str]:
        """Test samples whose features equal those of a training sample, with that sample."""
        samples, contents = self.cache.dataset.samples, self.cache.contents
        keys = {each.id: (contents[each.video], each.span) for each in samples if each.video in contents}
        learned = {keys[each.id]: each.id for each in self.cache.dataset.half(self.split, "train") if each.id in keys}
        return {each: learned[keys[each]] for each in self.video_ids if each in keys and keys[each] in learned}

    @cached_property
    def correct(self) -> dict[Model, NDArray[np.bool_]]:
        """`[N]` for each model: whether its first choice is right."""
        return {model: correct(self.probabilities[model], self.labels) for model in self.models}

    @cached_property
    def paper(self) -> dict[str, float | None]:
        """The paper's accuracy of each model with this dataset and pooling, a fraction; None if the paper has none."""
        printed = paper.accuracy(self.dataset, self.pool)
        return {"searched": None, **{model: value and round(value / 100, 6) for model, value in printed.items()}}

    def accuracy(self, model: Model) -> float:
        """Fraction of the split's test videos that are right; those without features are wrong."""
        return fraction(self.correct[model])

    def macro(self, model: Model) -> float:
        """Mean of the classes' accuracies, those without test videos left out: each class counts the same."""
        return macro_accuracy(self.correct[model], self.labels, len(self.classes))

    def interval(self, model: Model) -> Interval:
        """95 % interval of the accuracy, Wilson's."""
        return wilson(int(self.correct[model].sum()), len(self.labels))

    def calibrated(self, name: Scaled) -> NDArray[np.float64] | None:
        """A model's probabilities `[N, K]` at its temperature; None if none was found."""
        found = self.calibration.temperatures.get(name) if self.calibration else None
        return None if found is None else scaled(self.probabilities[name], found)

    @cached_property
    def refusals(self) -> Refusals | None:
        """What "none of these" does to the test videos; None if there is no threshold."""
        fused = self.calibrated("fused")
        if self.calibration is None or fused is None:
            return None
        return refusals(fused.max(axis=1), self.correct["fused"], self.calibration.threshold)

    @property
    def certainty(self) -> str:
        """How far the probabilities can be believed, in words."""
        fused, test = self.calibrated("fused"), self.refusals
        if self.calibration is None or fused is None or test is None:
            return f"not calibrated: there are no runs that held {FEW_VIDEOS} training videos or more out"
        kinds = (self.probabilities["fused"], fused)
        before, after = (f"{100 * reliability(each, self.labels)[0]:.1f}" for each in kinds)
        loss_before, loss_after = (f"{log_loss(each, self.labels):.3f}" for each in kinds)
        return (
            f"{self.calibration.text}. On the test {self.cache.dataset.noun}: log loss {loss_after}, "
            f"was {loss_before}; calibration error {after} points, was {before}; "
            f"loses {test.right_lost:,} of {test.right:,} right answers and {test.wrong_refused:,} of {test.wrong:,} "
            "wrong ones"
        )

    def against(self, other: Model) -> metrics.Comparison:
        """The fused model against another one."""
        return metrics.compare(self.correct["fused"], self.correct[other])

    def top5(self, model: Model) -> float | None:
        """Fraction whose true class is among the five most probable; None with five classes or fewer."""
        if len(self.classes) <= 5:
            return None
        return fraction(metrics.top_k_correct(self.probabilities[model], self.labels, 5))

    def figures(self, model: Model) -> dict[str, float | None]:
        """A row of Table 3, as fractions: accuracy, low, high, linear, macro, top5, paper, difference."""
        accuracy, printed = self.accuracy(model), self.paper[model]
        # A part of the videos is another test than the whole.
        difference = None if printed is None or self.cache.dataset.subset else accuracy - printed
        found = {"accuracy": accuracy, **asdict(self.interval(model)), "linear": self.linear.get(model)}
        return {
            **found,
            "macro": self.macro(model),
            "top5": self.top5(model),
            "paper": printed,
            "difference": difference,
        }

    @property
    def chance(self) -> float:
        """Accuracy of naming a class at random, each as likely."""
        return 1 / len(self.classes)

    def class_intervals(self) -> list[Interval | None]:
        """95 % interval of each class's fused accuracy; None for a class without test videos."""
        totals = np.bincount(self.labels, minlength=len(self.classes))
        right = np.bincount(self.labels[self.correct["fused"]], minlength=len(self.classes))
        return [wilson(int(r), int(n)) if n else None for r, n in zip(right, totals, strict=True)]

    def by_length(self) -> list[Portion]:
        """The test videos in LENGTHS parts by their cached frames, from short to long; empty if these are unknown."""
        frames = np.array([self.cache.frames.get(video, 0) for video in self.video_ids])
        order = np.argsort(frames, kind="stable")[(frames == 0).sum() :]
        if not len(order):
            return []
        # A boundary between equal lengths would put like videos into different parts.
        firsts = [part[0] for part in np.array_split(frames[order], LENGTHS) if len(part)]
        parts = [part for part in np.split(order, np.unique(np.searchsorted(frames[order], firsts))) if len(part)]
        return [
            Portion(
                f"{'–'.join(f'{each:,}' for each in ends)} frames", len(part), int(self.correct["fused"][part].sum())
            )
            for part in parts
            for ends in [dict.fromkeys((frames[part[0]], frames[part[-1]]))]
        ]

    def by_group(self) -> list[Portion]:
        """Recordings with GROUPED test videos or more, the worst first; empty if there are none."""
        right: dict[str, list[bool]] = {}
        group = {sample.id: sample.group_name for sample in self.cache.dataset.samples}
        for video, correct_ in zip(self.video_ids, self.correct["fused"].tolist(), strict=True):
            right.setdefault(group[video], []).append(correct_)
        parts = [Portion(name, len(each), sum(each)) for name, each in right.items() if len(each) >= GROUPED]
        return sorted(parts, key=lambda part: (part.accuracy, -part.videos, part.name))

    def confusion(self) -> NDArray[np.int64]:
        """Counts of the fused model `[K, K + 1]`: row = true class, column = predicted, the last one = none."""
        return metrics.confusion(predicted(self.probabilities["fused"]), self.labels, len(self.classes))

    def confused(self) -> NDArray[np.int64]:
        """The wrong predictions among `confusion` `[K, K]`: its diagonal is 0, videos without prediction left out."""
        wrong_KK = self.confusion()[:, : len(self.classes)]
        np.fill_diagonal(wrong_KK, 0)
        return wrong_KK

    def rivals(self) -> list[tuple[str, int] | None]:
        """For each class, what the fused model most often takes it for and how often; None if it never errs."""
        return [(self.classes[row.argmax()], int(row.max())) if row.any() else None for row in self.confused()]

    def per_class(self, model: Model) -> NDArray[np.float64]:
        """Accuracy of each class `[K]`, a fraction; NaN for a class without test videos."""
        return per_class(self.correct[model], self.labels, len(self.classes))


def evaluate(
    tables: Mapping[Level, ScoreTable],
    cache: ScoredCache,
    split: int,
    heldout: Heldout | None = None,
    curves: Mapping[Level, Sequence[Epoch]] | None = None,
    baseline: Mapping[Level, ScoreTable] | None = None,
) -> Results:
    """Fuse the levels' scores of a split's test videos. Raises `ScoreError` listing what does not belong together.

    On `heldout` videos, if there are any, fusion weights, temperatures and a threshold are found. `baseline` are the
    scores of `linear`, if it was trained beside the heads.
    """
    check_same(tables)
    expected = {video.id: video.label for video in cache.dataset.half(split, "test") if video.label is not None}
    if not expected:
        raise ScoreError(f"split {split} of {cache.dataset.name!r} has no labelled test videos to score")
    check_against_cache(tables, cache, expected)
    levels = {level: align(*tables[level].videos()[:2], tuple(expected)) for level in LEVELS}
    labels = np.fromiter(expected.values(), dtype=np.int64)
    searched = search_weights(heldout.levels, heldout.labels) if heldout else None
    linear: dict[Model, float] = {}
    if baseline:
        check_against_cache(baseline, cache, expected)
        regressions = {level: align(*baseline[level].videos()[:2], tuple(expected)) for level in LEVELS}
        fused = _models(regressions, searched)
        linear = {model: fraction(correct(probabilities, labels)) for model, probabilities in fused.items()}
    return Results(
        cache=cache,
        split=split,
        runs={level: {k: v for k, v in tables[level].run.items() if k != "fingerprint"} for level in LEVELS},
        clips=len(tables["high"].video_ids),
        video_ids=tuple(expected),
        labels=labels,
        probabilities=_models(levels, searched),
        searched_weights=searched,
        calibration=calibrate(heldout.levels, heldout.labels, PAPER_WEIGHTS, searched) if heldout else None,
        curves=curves or {},
        linear=linear,
    )


def _models(
    levels: Mapping[Level, NDArray[np.float64]], searched_weights: Mapping[Level, float] | None
) -> dict[Model, NDArray[np.float64]]:
    """Probabilities of the levels and of each way to fuse them."""
    models: dict[Model, NDArray[np.float64]] = {level: levels[level] for level in LEVELS}
    models["fused"] = fuse_levels(levels, PAPER_WEIGHTS)
    models["mean"] = fuse_levels(levels, MEAN_WEIGHTS)
    if searched_weights is not None:
        models["searched"] = fuse_levels(levels, searched_weights)
    return models


def caveats(results: Results) -> list[str]:
    """What to know before the figures are compared or believed, a sentence each; empty for the paper's own setting."""
    found = weights_caveats(results.cache.identity)
    recipes = sorted({str(run.get("recipe")) for run in results.runs.values()} - {PAPER_RECIPE})
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
    beaten = [
        f"{model} ({100 * results.accuracy(model):.1f} against {100 * accuracy:.1f} %)"
        for model, accuracy in results.linear.items()
        if results.accuracy(model) <= accuracy
    ]
    if beaten:
        found.append(
            f"no better than linear: {', '.join(beaten)}. A logistic regression on each {dataset.noun[:-1]}'s mean "
            "feature, trained in seconds, does as well."
        )
    if test_videos < FEW_VIDEOS:
        found.append(f"test {dataset.noun}: {test_videos}, {TOO_FEW}: accuracies and differences may be chance.")
    return found


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


@dataclass(frozen=True)
class Made:
    """When and by what an output was made."""

    version: str
    """Version of this program."""
    date: str
    """UTC, to the second, ISO 8601."""


def made_now() -> Made:
    """This program's version and the time."""
    return Made(version_of("mrrn"), datetime.now(UTC).isoformat(timespec="seconds"))


def summarise(results: Results, notes: Sequence[str], made: Made) -> dict[str, Any]:
    """Content of results.json: all figures as JSON values; accuracies and the paper's are fractions of the videos."""
    subset, searched = results.cache.dataset.subset, results.searched_weights
    return {
        "format": FORMAT,
        "notes": list(notes),
        "dataset": results.dataset,
        "split": results.split,
        "pool": results.pool,
        "videos": len(results.video_ids),
        "clips": results.clips,
        "unread_share": results.unread_share,
        "missing_videos": _with_reasons(results.missing),
        "suspect_videos": _with_reasons(results.suspect),
        "doctor": {"test_copies_of_training": len(results.copies)} if results.cache.contents else None,
        "accuracy": {model: results.accuracy(model) for model in MODELS},
        "top5": {model: results.top5(model) for model in MODELS},
        "interval95": {model: asdict(results.interval(model)) for model in MODELS},
        "macro": {model: results.macro(model) for model in MODELS},
        "linear": dict(results.linear),
        "fused_against": {model: _comparison(results.against(model)) for model in results.models if model != "fused"},
        "fusion_weights": dict(PAPER_WEIGHTS),
        "searched": searched and {"fusion_weights": dict(searched), "accuracy": results.accuracy("searched")},
        "calibration": results.calibration and asdict(results.calibration),
        "none_of_these": results.refusals and asdict(results.refusals),
        "certainty": results.certainty,
        "reliability": {name: _reliability(results, name) for name in SCALED if name in results.models},
        "paper": {model: value for model, value in results.paper.items() if value is not None},
        "weights": results.weights,
        "subset": subset and asdict(subset),
        "classes": list(results.classes),
        "classes_in_one_half": results.cache.dataset.one_sided(results.split),
        # JSON has no NaN: a class without test videos has no accuracy.
        "per_class": {model: [None if x != x else x for x in results.per_class(model).tolist()] for model in MODELS},
        "confusion": results.confusion().tolist(),
        "fingerprint": {"identity": dict(results.cache.identity), "environment": dict(results.cache.environment)},
        "runs": {level: dict(run) for level, run in results.runs.items()},
        "cost": dict(results.cache.cost),
        "by_length": [asdict(part) for part in results.by_length()],
        "by_group": [asdict(part) for part in results.by_group()],
        "curves": {level: [asdict(epoch) for epoch in epochs] for level, epochs in results.curves.items()},
        "made": asdict(made),
    }


def _reliability(results: Results, name: Scaled) -> dict[str, Any]:
    """Calibration error, log loss and bins on the test videos, of probabilities as they are and calibrated."""
    kinds = {"raw": results.probabilities[name], "calibrated": results.calibrated(name)}
    found: dict[str, Any] = {}
    for kind, probabilities_NK in kinds.items():
        if probabilities_NK is None:
            found |= {f"ece_{kind}": None, f"log_loss_{kind}": None, f"bins_{kind}": []}
            continue
        error, bins = reliability(probabilities_NK, results.labels)
        loss = log_loss(probabilities_NK, results.labels)
        found |= {f"ece_{kind}": error, f"log_loss_{kind}": loss, f"bins_{kind}": list(map(asdict, bins))}
    return found


def _comparison(compared: metrics.Comparison) -> dict[str, Any]:
    return {
        "difference": compared.difference,
        "interval95": asdict(compared.interval),
        "only_fused_right": compared.test.only_first,
        "only_other_right": compared.test.only_second,
        "mcnemar_p": compared.test.p_value,
        "verdict": compared.verdict,
        "text": compared.text,
    }


def _with_reasons(reasons: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"id": video, "reason": reason} for video, reason in sorted(reasons.items())]
