"""The chosen runs' score tables, the cache that they come from, and the checks that these belong together.

Before anything is fused, the levels' scores are compared with one another (`check_same`) and with the cache
(`check_against_cache`).
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from cache.aggregate import FEW_VIDEOS, align
from cache.common.errors import MrrnError, ScoreError, TrainingError
from cache.common.files import read_bounded
from cache.common.text import some
from cache.common.workspace import Workspace
from cache.dataset import Dataset
from cache.fingerprint import LEVELS, Level
from cache.scores import ScoreTable, read_scores
from cache.store import FeatureCache
from fuse.choice import RunChoice
from train.config import HELDOUT_SCORES_FILE, METRICS_FILE, SCORES_FILE, baseline_of, read_config
from train.split import split_off

METRICS_BYTES: Final = 1 << 26
"""Bytes of a run's metrics at most; an epoch takes some 300."""

SHOWN: Final = 10
"""Names that an error lists before it says how many more there are."""


@dataclass(frozen=True, kw_only=True)
class ScoredCache:
    """The cache that scores come from, as far as fusion needs it."""

    dataset: Dataset
    identity: Mapping[str, Any]
    """Fingerprint fields that features depend on."""
    environment: Mapping[str, Any]
    """Fingerprint fields that say where they were computed."""
    video_ids: tuple[str, ...]
    """Samples that have features: ids of videos, or of spans."""
    suspect: Mapping[str, str]
    """Samples whose video's decoding is in doubt, with the reason; they have features and are used."""
    failed: Mapping[str, str]
    """Samples without features, with the reason."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the extraction was asked for, as the cache remembers it."""
    frames: Mapping[str, int] = field(default_factory=dict)
    """Cached frames of each sample that has features."""
    contents: Mapping[str, bytes] = field(default_factory=dict)
    """Of each video, equal for videos with equal features; empty if that is not known."""
    cost: Mapping[str, float] = field(default_factory=dict)
    """`videos`, `frames`, `bytes` and `decode_seconds`, the time spent decoding, of the whole cache."""

    def test_labels(self, split: int) -> dict[str, int]:
        """Label of each labelled sample in the test half of a split, in id order."""
        return {each.id: each.label for each in self.dataset.half(split, "test") if each.label is not None}


def read_scored_cache(workspace: Workspace, dataset: str) -> ScoredCache:
    """Dataset, fingerprint and outcomes of a finished cache. Raises `CacheError` if it is missing or unfinished."""
    with FeatureCache.open(workspace.cache(dataset)) as cache:
        cache.require_finished()
        suspect, failed = (
            {outcome.video_id: outcome.reason for outcome in cache.ledger.outcomes(status)}
            for status in ("suspect", "failed")
        )
        video_of = {sample.id: sample.video for sample in cache.dataset.samples}
        frames = {sample.id: len(cache.frames_of(sample)) for sample in cache.dataset.samples}
        have = tuple(each for each, count in frames.items() if count)
        outcomes = [outcome for outcome in cache.ledger.outcomes() if outcome.num_frames]
        try:
            contents = cache.contents()
        except (MrrnError, OSError):
            contents = {}  # the scores are at hand, whatever became of the shards
        return ScoredCache(
            dataset=cache.dataset,
            identity=cache.fingerprint.identity,
            environment=cache.fingerprint.environment,
            video_ids=have,
            suspect={each: suspect[video_of[each]] for each in have if video_of[each] in suspect},
            failed={
                each: failed.get(video_of[each], "no frame of its video is in the span")
                for each in sorted(video_of.keys() - have)
            },
            settings=dict(cache.settings),
            frames={each: frames[each] for each in have},
            contents=contents,
            cost={
                "videos": len(outcomes),
                "frames": sum(outcome.num_frames for outcome in outcomes),
                "bytes": sum(row.num_bytes for row in cache.ledger.shards()),
                "decode_seconds": sum(outcome.seconds for outcome in outcomes),
            },
        )


def read_levels(choice: RunChoice) -> dict[Level, ScoreTable]:
    """Scores of the low, mid and high runs, not yet compared. Raises `ScoreError` if a level is not trained."""
    paths = {level: folder / SCORES_FILE for level, folder in choice.folders().items()}
    missing = [level for level, path in paths.items() if not path.exists()]
    if missing:
        if cache := FeatureCache.find(choice.workspace.cache(choice.dataset), None):
            with cache:
                cache.require_levels()
        which = missing[0] if len(missing) == 1 else "all"
        raise ScoreError(
            f"no scores of level {', '.join(missing)} for {choice}; train with "
            f"`mrrn train {shlex.join(choice.options())} --level {which}` (looked for {paths[missing[0]]})"
        )
    return {level: read_scores(path) for level, path in paths.items()}


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One epoch of a run's training, from its metrics."""

    epoch: int
    """From 0."""
    loss: float
    """Mean over the training clips, as they were trained: with dropout, smoothing and all."""
    accuracy: float
    """Share of the training clips that were right."""
    seconds: float = 0.0
    """Time that it took."""
    heldout_loss: float | None = None
    """Mean of -ln(probability of the right class) of the watched videos; None in runs that watch none."""
    heldout_accuracy: float | None = None
    """Share of the watched videos that are right."""


def read_curve(folder: Path) -> tuple[Epoch, ...]:
    """The epochs of the run in `folder`, empty if it has no metrics. Raises `ScoreError` if they cannot be read."""
    path = folder / METRICS_FILE
    try:
        lines = read_bounded(path, METRICS_BYTES).splitlines()
        return tuple(msgspec.json.decode(line, type=Epoch) for line in lines)
    except FileNotFoundError:
        return ()
    except (ValueError, RecursionError) as error:
        raise ScoreError(
            f"{path} is not a log written by this program: {error}; train that level again with --fresh"
        ) from error


def read_baseline(choice: RunChoice) -> dict[Level, ScoreTable] | None:
    """Scores of the `linear` runs beside the chosen ones; None unless all levels have one, of the same cache."""
    found = {}
    for level, folder in choice.folders().items():
        read = read_config(folder)
        if read is None:
            return None
        baseline = baseline_of(read[0])
        path = baseline.folder(choice.workspace) / SCORES_FILE
        if path.parent == folder or not path.exists():  # `linear` itself, or none
            return None
        found[level] = read_scores(path)
        recorded = read_config(path.parent)
        if recorded is None or baseline.differences(recorded[0]):
            return None
    check_same(found)
    return found


@dataclass(frozen=True, kw_only=True)
class Heldout:
    """Held-out training videos as heads that did not learn from them see them."""

    levels: Mapping[Level, NDArray[np.float64]]
    """Probabilities `[N, K]` of each level."""
    labels: NDArray[np.int64]
    """`[N]`"""


def read_heldout(choice: RunChoice) -> Heldout | None:
    """The held-out videos' scores; None if no such runs were trained.

    The runs are those of `mrrn train --holdout`, or the watching runs themselves. Raises `ScoreError` unless they
    are of the same cache as the runs on the test videos, and score none of these.
    """
    paths = {level: choice.folder(level, holdout=True) / HELDOUT_SCORES_FILE for level in LEVELS}
    if not all(path.exists() for path in paths.values()):
        return None
    tables, tested = {level: read_scores(path) for level, path in paths.items()}, read_levels(choice)["high"]
    check_same(tables)
    halves = {"test": tested, "held-out": tables["high"]}
    problems = differences("cache digest", {half: table.run.get("cache_digest") for half, table in halves.items()})
    shared = set(tested.video_ids.tolist()) & set(tables["high"].video_ids.tolist())
    if problems or shared:
        raise ScoreError(
            f"the held-out scores in {paths['high'].parent.parent} are not of the training videos of this cache "
            f"({'; '.join([*problems, *sorted(shared)[:1]])}); train them again (`mrrn train --holdout`)"
        )
    ids, _, labels = tables["high"].videos()
    return Heldout(levels=by_sample(tables, ids), labels=labels)


def can_calibrate(cache: ScoredCache, split: int, seed: int) -> bool:
    """Whether runs of `mrrn train --holdout` would hold enough training samples out to calibrate on."""
    have = set(cache.video_ids)
    try:
        _, held = split_off([each for each in cache.dataset.half(split, "train") if each.id in have], seed)
    except TrainingError:
        return False
    return len(held) >= FEW_VIDEOS


def check_same(tables: Mapping[Level, ScoreTable]) -> None:
    """Raises `ScoreError` listing every way in which the levels' scores are not of the same videos and settings."""
    problems = run_differences({level: table.run for level, table in tables.items()})
    problems += differences("cache fingerprint", {level: identity_of(table) for level, table in tables.items()})
    problems += differences("classes", {level: tuple(table.classes.tolist()) for level, table in tables.items()})
    problems += _clip_differences(tables)
    if problems:
        listed = "\n  ".join(["the levels' scores do not belong together:", *problems])
        raise ScoreError(f"{listed}\ntrain the levels again on one cache, split and clip rule (`make train LEVEL=all`)")


def run_differences(runs: Mapping[Level, Mapping[str, Any]]) -> list[str]:
    """A line for each way in which what is recorded of the levels' runs is not of one dataset, split and cache."""
    problems = [
        f"what is given as level {level} is of level {run.get('level')!r}"
        for level, run in runs.items()
        if run.get("level") != level
    ]
    for name in ("dataset", "split", "pool", "clips", "cache_digest"):
        problems += differences(name.replace("_", " "), {level: run.get(name) for level, run in runs.items()})
    return problems


def check_against_cache(table: ScoreTable, cache: ScoredCache, expected: Mapping[str, int]) -> None:
    """Raises `ScoreError` if scores are older than the cache they come from, or of samples outside the test half.

    `expected` are the test samples' labels. Those without features need no scores.
    """
    problems = differences("fingerprint", {"scores": identity_of(table), "cache": _without_name(cache.identity)})
    problems += half_differences(table, cache.dataset, expected)
    if unscored := set(cache.video_ids) & expected.keys() - table.label_of.keys():
        problems.append(f"test videos that have features but no scores: {some(sorted(unscored), SHOWN)}")
    if problems:
        listed = "\n  ".join(["the scores do not fit the cache:", *problems])
        raise ScoreError(f"{listed}\ntrain again (`make train LEVEL=all`)")


def half_differences(table: ScoreTable, dataset: Dataset, expected: Mapping[str, int]) -> list[str]:
    """A line for each way in which scores are not of the test half of `dataset`, whose labels are `expected`."""
    problems = differences("classes", {"scores": tuple(table.classes.tolist()), "dataset": dataset.classes})
    scored = table.label_of
    wrong = {
        "scored, but not test videos of this split": scored.keys() - expected.keys(),
        "labels differ from the dataset's for": {v for v, label in scored.items() if expected.get(v, label) != label},
    }
    return problems + [f"{what}: {some(sorted(videos), SHOWN)}" for what, videos in wrong.items() if videos]


def by_sample(tables: Mapping[Level, ScoreTable], ids: Sequence[str]) -> dict[Level, NDArray[np.float64]]:
    """Probabilities `[N, K]` of each level for the samples `ids`; NaN rows for those without scores."""
    return {level: align(*table.videos()[:2], ids) for level, table in tables.items()}


def _without_name(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What features depend on, without the weights' name: equal hashes are equal weights."""
    return {name: value for name, value in identity.items() if name != "weights"}


def identity_of(table: ScoreTable) -> dict[str, Any]:
    """What the features behind the scores depend on."""
    return _without_name(table.run.get("fingerprint", {}).get("identity", {}))


def differences(name: str, values: Mapping[Any, Any]) -> list[str]:
    """A line for a value that is not the same for all keys (levels); of mappings, a line for each such field."""
    if all(value == next(iter(values.values())) for value in values.values()):
        return []
    if all(isinstance(value, Mapping) for value in values.values()):
        fields = sorted({field for value in values.values() for field in value})
        return [
            line
            for field in fields
            for line in differences(f"{name}, {field}", {level: value.get(field) for level, value in values.items()})
        ]
    if all(isinstance(value, tuple) for value in values.values()):
        missing = _missing(name, {level: set(value) for level, value in values.items()})
        return missing or [f"{name}: the same names in another order"]
    return [f"{name}: " + ", ".join(f"{level} {value!r}" for level, value in values.items())]


def _missing(name: str, sets: Mapping[Any, set[str]]) -> list[str]:
    """A line for each set that lacks what another one has."""
    everything = set().union(*sets.values())
    return [
        f"{name} missing in {level}: {some(sorted(everything - have), SHOWN)}"
        for level, have in sets.items()
        if everything - have
    ]


def _clip_differences(tables: Mapping[Level, ScoreTable]) -> list[str]:
    """Videos, clips and labels that are not the same in every level."""
    labels = {level: table.label_of for level, table in tables.items()}
    shared = set.intersection(*(set(label_of) for label_of in labels.values()))
    clips = {
        level: {
            f"{video} [{start}, {stop})"
            for video, (start, stop) in zip(table.video_ids.tolist(), table.spans.tolist(), strict=True)
            if video in shared
        }
        for level, table in tables.items()
    }
    problems = _missing("videos", {level: set(label_of) for level, label_of in labels.items()})
    problems += _missing("clips", clips)
    other = sorted(video for video in shared if len({label_of[video] for label_of in labels.values()}) > 1)
    return problems + ([f"labels differ for {some(other, SHOWN)}"] if other else [])
