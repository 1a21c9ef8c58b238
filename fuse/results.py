"""A report as data: predictions of every model for one split, and every figure that follows from them.

Computed once here, then rendered as tables, figures and a page by `fuse.report`. Shapes: N test videos, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
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
    Interval,
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
from cache.common.workspace import run_name
from cache.fingerprint import LEVELS, Level
from cache.scores import ScoreTable
from fuse import metrics, paper
from fuse.calibration import Calibration, Refusals, Scaled, calibrate, refusals, reliability, scaled
from fuse.choice import RunChoice
from fuse.scores import (
    Epoch,
    Heldout,
    ScoredCache,
    by_sample,
    check_against_cache,
    check_same,
    read_baseline,
    read_curve,
    read_heldout,
    read_levels,
    read_scored_cache,
)
from train.config import RunConfig, read_config

Model = Literal["low", "mid", "high", "fused", "mean", "searched"]

MODELS: Final[tuple[Model, ...]] = ("low", "mid", "high", "fused", "mean")
"""The three levels, equation 10, and the plain mean of the levels; every split has them."""

TITLES: Final[Mapping[Model, str]] = {
    "low": "Low RRN",
    "mid": "Mid RRN",
    "high": "High RRN",
    "fused": "MRRN (0.7 high + 0.2 mid + 0.1 low)",
    "mean": "MRRN (plain mean)",
    "searched": "MRRN (weights found on held-out training data)",
}


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
    config: RunConfig | None = None
    """The high level's run; None if its scores are all there is."""
    linear_correct: Mapping[Model, NDArray[np.bool_]] = field(default_factory=dict)
    """`[N]`: what the baseline `linear` gets right in each model's place; empty if it was not trained beside them."""

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
    def noun(self) -> str:
        """What the test samples are called: videos, or samples."""
        return self.cache.dataset.noun

    @property
    def pool(self) -> str:
        """Temporal pooling of the heads: mean, max or attention."""
        return str(self.runs["high"].get("pool"))

    @property
    def run(self) -> str:
        """Name of the runs: their folders' without the level."""
        return run_name(self.pool, self.runs["high"].get("seed", 0), str(self.runs["high"].get("variant") or ""))

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
        run, whose = self.runs["high"], f"the scored {self.noun}'"
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

    @property
    def linear(self) -> dict[Model, float]:
        """Accuracy of `linear` in each model's place, a fraction."""
        return {model: fraction(correct_N) for model, correct_N in self.linear_correct.items()}

    @property
    def linear_macro(self) -> dict[Model, float]:
        """Macro accuracy of `linear` in each model's place, a fraction."""
        classes = len(self.classes)
        return {model: macro_accuracy(each, self.labels, classes) for model, each in self.linear_correct.items()}

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
        """How far the probabilities can be believed, as what can be said of them: "calibrated by …"."""
        fused, test = self.calibrated("fused"), self.refusals
        if self.calibration is None or fused is None or test is None:
            return f"not calibrated, because no runs held {FEW_VIDEOS} training {self.noun} or more out"
        kinds = (self.probabilities["fused"], fused)
        before, after = (f"{100 * reliability(each, self.labels)[0]:.1f}" for each in kinds)
        loss_before, loss_after = (f"{log_loss(each, self.labels):.3f}" for each in kinds)
        return (
            f"{self.calibration.text(self.noun)}. On the test {self.noun}: log loss {loss_after}, "
            f"was {loss_before}; calibration error {after} points, was {before}; "
            f"loses {test.right_lost:,} of {test.right:,} right answers and {test.wrong_refused:,} of {test.wrong:,} "
            "wrong ones"
        )

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
        return {
            "accuracy": accuracy,
            **asdict(self.interval(model)),
            "linear": self.linear.get(model),
            "macro": self.macro(model),
            "top5": self.top5(model),
            "paper": printed,
            "difference": difference,
        }

    @property
    def chance(self) -> float:
        """Accuracy of naming a class at random, each as likely."""
        return 1 / len(self.classes)

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


def results_of(choice: RunChoice) -> Results:
    """What the chosen runs and those trained beside them scored. Raises `ScoreError` as `evaluate`, or for none."""
    config = read_config(choice.folder("high"))
    results = evaluate(
        read_levels(choice),
        read_scored_cache(choice.workspace, choice.dataset),
        choice.split,
        read_heldout(choice),
        {level: read_curve(folder) for level, folder in choice.folders().items()},
        read_baseline(choice),
    )
    return replace(results, config=config and config[0])


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
    expected = cache.test_labels(split)
    if not expected:
        raise ScoreError(f"split {split} of {cache.dataset.name!r} has no labelled test videos to score")
    check_against_cache(tables["high"], cache, expected)
    levels = by_sample(tables, tuple(expected))
    labels = np.fromiter(expected.values(), dtype=np.int64)
    searched = search_weights(heldout.levels, heldout.labels) if heldout else None
    linear: dict[Model, NDArray[np.bool_]] = {}
    if baseline:
        check_against_cache(baseline["high"], cache, expected)
        fused = _models(by_sample(baseline, tuple(expected)), searched)
        linear = {model: correct(probabilities, labels) for model, probabilities in fused.items()}
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
        linear_correct=linear,
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
