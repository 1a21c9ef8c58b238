"""Which runs are meant: the options that all of fuse's commands share, and the folders they stand for.

The three levels' scores, checked to be of one dataset, split, cache and set of videos before anything is fused.

What fusion needs to know of the cache that scores come from.
"""

import functools
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from cache.aggregate import search_weights
from cache.common.console import choose_dataset, dataset_option, work_option
from cache.common.errors import ScoreError
from cache.common.workspace import Workspace
from cache.dataset import Dataset
from cache.fingerprint import LEVELS, Level
from cache.scores import ScoreTable, read_scores

HOLDOUT = "holdout"
"""End of the folder's name of runs that left a part of the training videos out and scored that part."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The three levels' runs of one dataset, split, pooling and seed."""

    workspace: Workspace
    dataset: str
    split: int = 1
    pool: str = "mean"
    seed: int = 0
    recipe: str | None = None
    """None for the recipe that is usual for the dataset."""

    def folder(self, level: Level, *, holdout: bool = False) -> Path:
        """Folder of a level's run."""
        usual = self._run(level, HOLDOUT if holdout else "")
        if self.recipe is None or _recipe_of(usual) == self.recipe:
            return usual
        return self._run(level, f"{self.recipe}-{HOLDOUT}" if holdout else self.recipe)

    def folders(self) -> dict[Level, Path]:
        """Folders of all three levels' runs."""
        return {level: self.folder(level) for level in LEVELS}

    def options(self) -> list[str]:
        """The same choice as options of `python -m train`."""
        options = ["--dataset", self.dataset, "--split", str(self.split), "--pool", self.pool, "--seed", str(self.seed)]
        return [*options, "--recipe", self.recipe] if self.recipe else options

    def __str__(self) -> str:
        recipe = f", recipe {self.recipe}" if self.recipe else ""
        return f"{self.dataset}, split {self.split}, {self.pool} pooling, seed {self.seed}{recipe}"

    def _run(self, level: Level, variant: str) -> Path:
        return self.workspace.run(self.dataset, self.split, level, self.pool, self.seed, variant)


def _recipe_of(folder: Path) -> str | None:
    """Name of the recipe that a run was trained by; None where there is no such run."""
    try:
        return str(json.loads((folder / "config.json").read_bytes())["recipe"]["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # whoever opens the run says what is wrong with it


_OPTIONS = (
    work_option,
    dataset_option,
    click.option(
        "--pool",
        type=click.Choice(["mean", "max", "attention"]),
        default="mean",
        show_default=True,
        help="Temporal pooling of the heads (equations 8 and 9).",
    ),
    click.option(
        "--split", type=click.IntRange(1, 3), default=1, show_default=True, help="Split that the heads were trained on."
    ),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the runs."),
    click.option(
        "--recipe", metavar="NAME", help="Recipe that they were trained by. [default: the usual one for the dataset]"
    ),
)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that choose runs; it gets them as `choose`, a function that makes the Choice."""

    @functools.wraps(command)
    def with_choice(
        *, workspace: Workspace, dataset: str | None, pool: str, split: int, seed: int, recipe: str | None, **rest: Any
    ) -> Any:
        def choose() -> Choice:
            name = choose_dataset(workspace, dataset)
            return Choice(workspace=workspace, dataset=name, split=split, pool=pool, seed=seed, recipe=recipe)

        return command(choose=choose, **rest)

    for option in reversed(_OPTIONS):
        with_choice = option(with_choice)
    return with_choice


SHOWN = 10
"""Names that an error lists before it says how many more there are."""


def read_levels(choice: Choice) -> dict[Level, ScoreTable]:
    """Scores of the low, mid and high runs; ScoreError names the levels that are not trained, and what differs."""
    paths = {level: folder / "scores.npz" for level, folder in choice.folders().items()}
    missing = [level for level, path in paths.items() if not path.exists()]
    if missing:
        which = missing[0] if len(missing) == 1 else "all"
        raise ScoreError(
            f"no scores of level {', '.join(missing)} for {choice}; train with "
            f"`python -m train {shlex.join(choice.options())} --level {which}` (looked for {paths[missing[0]]})"
        )
    tables = {level: read_scores(path) for level, path in paths.items()}
    check_same(tables)
    return tables


def searched_weights(choice: Choice, usual: Mapping[Level, ScoreTable]) -> dict[Level, float] | None:
    """Fusion weights that fit the held-out training videos best; None where no such runs were trained.

    The runs are those of `python -m train --holdout`, on the cache of the `usual` ones (ScoreError otherwise). Test
    videos have no part in it.
    """
    paths = {level: choice.folder(level, holdout=True) / "heldout-scores.npz" for level in LEVELS}
    if not all(path.exists() for path in paths.values()):
        return None
    tables = {level: read_scores(path) for level, path in paths.items()}
    check_same(tables)
    problems = _differences(
        "cache digest",
        {"test": usual["high"].run.get("cache_digest"), "held-out": tables["high"].run.get("cache_digest")},
    )
    tested = set(usual["high"].video_ids.tolist()) & set(tables["high"].video_ids.tolist())
    if problems or tested:
        raise ScoreError(
            f"the held-out scores in {paths['high'].parent.parent} are not of the training videos of this cache "
            f"({'; '.join([*problems, *sorted(tested)[:1]])}); train them again (`python -m train --holdout`)"
        )
    probabilities = {}
    for level, table in tables.items():
        _, probabilities[level], labels = table.videos()
    return search_weights(probabilities, labels)


def check_same(tables: Mapping[Level, ScoreTable]) -> None:
    """ScoreError listing every way in which the levels' scores are not of the same videos and settings."""
    problems = [
        f"{level} scores say they are of level {table.run.get('level')!r}"
        for level, table in tables.items()
        if table.run.get("level") != level
    ]
    for name, value in _COMPARED.items():
        problems += _differences(name, {level: value(table) for level, table in tables.items()})
    problems += _clip_differences(tables)
    if problems:
        raise ScoreError(
            "the levels' scores do not belong together:\n  "
            + "\n  ".join(problems)
            + "\ntrain the levels again on one cache, split and clip rule (`make train LEVEL=all`)"
        )


def _identity(run: Mapping[str, Any]) -> dict[str, Any]:
    """What the features were made with, without the weights' name: equal hashes are equal weights."""
    identity = run.get("fingerprint", {}).get("identity", {})
    return {name: value for name, value in identity.items() if name != "weights"}


_COMPARED: Mapping[str, Callable[[ScoreTable], Any]] = {
    "dataset": lambda table: table.run.get("dataset"),
    "split": lambda table: table.run.get("split"),
    "pool": lambda table: table.run.get("pool"),
    "clips": lambda table: table.run.get("clips"),
    "cache fingerprint": lambda table: _identity(table.run),
    "cache digest": lambda table: table.run.get("cache_digest"),
    "classes": lambda table: tuple(table.classes.tolist()),
}


def _differences(name: str, values: Mapping[Any, Any]) -> list[str]:
    """One line for a value that is not the same in all levels; of mappings, only the fields that differ."""
    if all(value == next(iter(values.values())) for value in values.values()):
        return []
    if all(isinstance(value, Mapping) for value in values.values()):
        fields = sorted({field for value in values.values() for field in value})
        return [
            line
            for field in fields
            for line in _differences(f"{name}, {field}", {level: value.get(field) for level, value in values.items()})
        ]
    if all(isinstance(value, tuple) for value in values.values()):
        return _set_differences(name, {level: set(value) for level, value in values.items()}) or [
            f"{name}: the same names in another order"
        ]
    return [f"{name}: " + ", ".join(f"{level} {value!r}" for level, value in values.items())]


def _set_differences(name: str, sets: Mapping[Any, set[str]]) -> list[str]:
    everything = set().union(*sets.values())
    return [
        f"{name} missing in {level}: {listed(sorted(everything - have))}"
        for level, have in sets.items()
        if everything - have
    ]


def _clip_differences(tables: Mapping[Level, ScoreTable]) -> list[str]:
    """Videos, clips and labels that are not in every level."""
    videos = {level: set(table.video_ids.tolist()) for level, table in tables.items()}
    problems = _set_differences("videos", videos)
    shared = set.intersection(*videos.values())
    clips = {
        level: {
            f"{video} [{start}, {stop})"
            for video, (start, stop) in zip(table.video_ids.tolist(), table.spans.tolist(), strict=True)
            if video in shared
        }
        for level, table in tables.items()
    }
    problems += _set_differences("clips", clips)
    labels = {
        level: dict(zip(table.video_ids.tolist(), table.labels.tolist(), strict=True))
        for level, table in tables.items()
    }
    other = sorted(video for video in shared if len({of[video] for of in labels.values()}) > 1)
    return problems + ([f"labels differ for {listed(other)}"] if other else [])


def check_against_cache(
    tables: Mapping[Level, ScoreTable],
    *,
    identity: Mapping[str, Any],
    classes: Sequence[str],
    expected: Mapping[str, int],
    have: Sequence[str],
) -> None:
    """ScoreError where scores are older than the cache they claim to come from, or of videos outside the test half.

    `identity` is the cache's fingerprint, `expected` the test videos and their labels, `have` the videos with features.
    """
    table = next(iter(tables.values()))
    scored = dict(zip(table.video_ids.tolist(), table.labels.tolist(), strict=True))
    pair = {"scores": _identity(table.run), "cache": _identity({"fingerprint": {"identity": identity}})}
    problems = _differences("fingerprint", pair)
    problems += _differences("classes", {"scores": tuple(table.classes.tolist()), "cache": tuple(classes)})
    wrong = {
        "scored, but not test videos of this split": set(scored) - set(expected),
        "test videos that have features but no scores": set(have) & set(expected) - set(scored),
        "labels differ from the dataset's for": {v for v, label in scored.items() if expected.get(v, label) != label},
    }
    problems += [f"{what}: {listed(sorted(videos))}" for what, videos in wrong.items() if videos]
    if problems:
        raise ScoreError(
            "the scores do not fit the cache:\n  " + "\n  ".join(problems) + "\ntrain again (`make train LEVEL=all`)"
        )


def listed(names: Sequence[str]) -> str:
    """The first names, quoted, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more


@dataclass(frozen=True, kw_only=True)
class Source:
    """What fusion needs to know of the cache that the scores come from."""

    dataset: Dataset
    identity: Mapping[str, Any]
    """Fingerprint fields that features depend on."""
    environment: Mapping[str, Any]
    """Fingerprint fields that say where they were computed."""
    video_ids: tuple[str, ...]
    """Videos that have features."""
    suspect: Mapping[str, str]
    """Videos whose decoding is in doubt, with the reason; they have features and are used."""
    failed: Mapping[str, str]
    """Videos without features, with the reason."""


def read_source(workspace: Workspace, dataset: str) -> Source:
    """Dataset, fingerprint and ledger of a finished cache; CacheError where there is none or videos are pending."""
    from cache.store import FeatureCache

    with FeatureCache.open(workspace.cache(dataset)) as cache:
        cache.require_finished()
        return Source(
            dataset=cache.dataset,
            identity=cache.fingerprint.identity,
            environment=cache.fingerprint.environment,
            video_ids=cache.video_ids,
            suspect={outcome.video_id: outcome.reason for outcome in cache.ledger.outcomes("suspect")},
            failed={outcome.video_id: outcome.reason for outcome in cache.ledger.outcomes("failed")},
        )
