"""Which runs a command is about, their score tables, and the checks that these belong together.

A RunChoice stands for the three levels' runs of one dataset, split, pooling and seed. Before anything is fused, their
scores are compared with one another (`check_same`) and with the cache they were made from (`check_against_cache`).
"""

import functools
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import numpy as np
from numpy.typing import NDArray

from cache.aggregate import align
from cache.common.console import NameChoice, choose_dataset, dataset_option, work_option
from cache.common.errors import MrrnError, ScoreError
from cache.common.files import read_bounded
from cache.common.text import some
from cache.common.workspace import Workspace
from cache.dataset import Dataset
from cache.fingerprint import LEVELS, Level
from cache.scores import ScoreTable, read_scores
from cache.store import FeatureCache
from train.config import (
    HELDOUT_SCORES_FILE,
    HOLDOUT,
    METRICS_FILE,
    SCORES_FILE,
    WATCHED,
    baseline_of,
    read_config,
    variant_of,
)
from train.recipes import LINEAR, POOLS, RECIPES, RETIRED, with_overrides
from train.split import open_split

METRICS_BYTES: Final = 1 << 26
"""Bytes of a run's metrics at most; an epoch takes some 300."""

SHOWN: Final = 10
"""Names that an error lists before it says how many more there are."""


@dataclass(frozen=True, kw_only=True)
class RunChoice:
    """The three levels' runs of one dataset, split, pooling and seed."""

    workspace: Workspace
    dataset: str
    split: int = 1
    pool: str = "mean"
    seed: int = 0
    recipe: str | None = None
    """None for the dataset's usual recipe."""
    watch: bool = False
    """Whether the runs are those that watch held-out videos."""
    clips: str | None = None
    """Parts of the clip rule that they were trained with, as for `--clips`; None for the recipe's own rule."""

    def folder(self, level: Level, *, holdout: bool = False) -> Path:
        """Folder of a level's run, or of the run with its held-out scores, which a run that watches has itself.

        Raises `TrainingError` if the usual run has to be read for it and cannot be.
        """
        if self.clips is not None or self.recipe == LINEAR:
            opened = open_split(self.workspace, self.dataset, self.split)
            usual_recipe, _ = opened.usual_recipe()
            recipe = with_overrides(opened.recipes[self.recipe] if self.recipe else usual_recipe, clips=self.clips)
            held = holdout and not self.watch
            return self._folder(
                level, variant_of(recipe, usual_recipe, holdout=held, watch=self.watch, recipes=opened.recipes)
            )
        word = WATCHED if self.watch else HOLDOUT if holdout else ""
        usual = self._folder(level, word)
        if self.recipe is None:
            return usual
        found = read_config(usual)
        if found and found[0].recipe.name == self.recipe:
            return usual
        return self._folder(level, f"{self.recipe}-{word}" if word else self.recipe)

    def folders(self) -> dict[Level, Path]:
        """Folders of all three levels' runs."""
        return {level: self.folder(level) for level in LEVELS}

    def of_new_videos(self) -> "RunChoice":
        """The runs that new videos are predicted by: those of this clip rule if they were trained, else the usual."""
        if self.clips is None or all((folder / SCORES_FILE).exists() for folder in self.folders().values()):
            return self
        return replace(self, clips=None)

    def options(self) -> list[str]:
        """The same choice as options of `mrrn train`."""
        options = ["--work", str(self.workspace.root)] if self.workspace != Workspace(Path("work")) else []
        options += ["--dataset", self.dataset, *f"--split {self.split} --pool {self.pool} --seed {self.seed}".split()]
        options += ["--recipe", self.recipe] if self.recipe else []
        options += ["--clips", self.clips] if self.clips is not None else []
        return [*options, "--watch"] if self.watch else options

    def __str__(self) -> str:
        recipe = f", recipe {self.recipe}" if self.recipe else ""
        watch = ", watching held-out videos" if self.watch else ""
        clips = "" if self.clips is None else f", clips {self.clips}"
        return f"{self.dataset}, split {self.split}, {self.pool} pooling, seed {self.seed}{recipe}{clips}{watch}"

    def _folder(self, level: Level, variant: str) -> Path:
        return self.workspace.run(self.dataset, self.split, level, self.pool, self.seed, variant)


split_option = click.option(
    "--split", type=click.IntRange(1, 3), default=1, show_default=True, help="Split that the heads were trained on."
)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that choose runs; it gets them as `choose`, which makes the RunChoice.

    `choose` takes the text of `--clips`, which some commands have beside these.
    """

    @work_option
    @dataset_option
    @click.option(
        "--pool",
        type=NameChoice(POOLS),
        default="mean",
        show_default=True,
        help="Temporal pooling of the heads (equations 8 and 9).",
    )
    @split_option
    @click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the runs.")
    @click.option(
        "--recipe",
        type=NameChoice(sorted([*RECIPES, *RETIRED])),
        metavar="NAME",
        help="Recipe that they were trained by. [default: the usual one for the dataset]",
    )
    @click.option("--watch", is_flag=True, help="The runs of `mrrn train --watch`.")
    @functools.wraps(command)
    def with_choice(
        *,
        workspace: Workspace,
        dataset: str | None,
        pool: str,
        split: int,
        seed: int,
        recipe: str | None,
        watch: bool,
        **rest: Any,
    ) -> Any:
        def choose(clips: str | None = None) -> RunChoice:
            name = choose_dataset(workspace, dataset)
            workspace.existing_cache(name)
            return RunChoice(
                workspace=workspace,
                dataset=name,
                split=split,
                pool=pool,
                seed=seed,
                recipe=recipe,
                watch=watch,
                clips=clips,
            )

        return command(choose=choose, **rest)

    return with_choice


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


def read_scored_cache(workspace: Workspace, dataset: str) -> ScoredCache:
    """Dataset, fingerprint and outcomes of a finished cache. Raises `CacheError` if it is missing or unfinished."""
    with FeatureCache.open(workspace.cache(dataset)) as cache:
        cache.require_finished()
        suspect, failed = (
            {outcome.video_id: outcome.reason for outcome in cache.ledger.outcomes(status)}
            for status in ("suspect", "failed")
        )
        samples = {sample.id: sample.video for sample in cache.dataset.samples}
        frames = {sample.id: len(cache.frames_of(sample)) for sample in cache.dataset.samples}
        have = tuple(each for each, count in frames.items() if count)
        lacking = samples.keys() - have
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
            suspect={each: suspect[samples[each]] for each in have if samples[each] in suspect},
            failed={
                each: failed.get(samples[each], "no frame of its video is in the span") for each in sorted(lacking)
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
    """Scores of the `linear` runs beside the chosen ones; None unless all levels have one of the same cache."""
    found = {}
    for level, folder in choice.folders().items():
        read = read_config(folder)
        if read is None:
            return None
        baseline = baseline_of(read[0])
        path = baseline.folder(choice.workspace) / SCORES_FILE
        if not path.exists():
            return None
        found[level] = read_scores(path)
        if found[level].run.get("cache_digest") != read[0].cache_digest:
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
    return Heldout(levels={level: align(*table.videos()[:2], ids) for level, table in tables.items()}, labels=labels)


def check_same(tables: Mapping[Level, ScoreTable]) -> None:
    """Raises `ScoreError` listing every way in which the levels' scores are not of the same videos and settings."""
    runs = {level: table.run for level, table in tables.items()}
    problems = [
        f"{level} scores say they are of level {run.get('level')!r}"
        for level, run in runs.items()
        if run.get("level") != level
    ]
    for name in ("dataset", "split", "pool", "clips", "cache_digest"):
        problems += differences(name.replace("_", " "), {level: run.get(name) for level, run in runs.items()})
    problems += differences("cache fingerprint", {level: identity_of(table) for level, table in tables.items()})
    problems += differences("classes", {level: tuple(table.classes.tolist()) for level, table in tables.items()})
    problems += _clip_differences(tables)
    if problems:
        listed = "\n  ".join(["the levels' scores do not belong together:", *problems])
        raise ScoreError(f"{listed}\ntrain the levels again on one cache, split and clip rule (`make train LEVEL=all`)")


def check_against_cache(tables: Mapping[Level, ScoreTable], cache: ScoredCache, expected: Mapping[str, int]) -> None:
    """Raises `ScoreError` if scores are older than the cache they come from, or of videos outside the test half.

    `expected` are the test videos' labels. Test videos without features need no scores.
    """
    table = next(iter(tables.values()))
    scored = table.label_of
    problems = differences("fingerprint", {"scores": identity_of(table), "cache": _without_name(cache.identity)})
    problems += differences("classes", {"scores": tuple(table.classes.tolist()), "cache": cache.dataset.classes})
    wrong = {
        "scored, but not test videos of this split": set(scored) - set(expected),
        "test videos that have features but no scores": set(cache.video_ids) & set(expected) - set(scored),
        "labels differ from the dataset's for": {v for v, label in scored.items() if expected.get(v, label) != label},
    }
    problems += [f"{what}: {some(sorted(videos), SHOWN)}" for what, videos in wrong.items() if videos]
    if problems:
        listed = "\n  ".join(["the scores do not fit the cache:", *problems])
        raise ScoreError(f"{listed}\ntrain again (`make train LEVEL=all`)")


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
