"""A run: its configuration, its folder, and how far it is. Plain data and small files, no torch."""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import msgspec

from cache.clips import ClipRule
from cache.common.console import say
from cache.common.device import multiplies_bf16
from cache.common.errors import TrainingError
from cache.common.files import read_json_and_seal, write_sealed_json
from cache.common.text import visible
from cache.common.workspace import Workspace, run_name
from cache.fingerprint import LEVELS, Level, widths_of
from train.recipes import KNOBS, LINEAR, RECIPES, RETIRED, Pool, Precision, Recipe, linear_beside

Status = Literal["training", "finished"]

CONFIG_FILE = "config.json"
CHECKPOINT_FILE = "checkpoint.safetensors"
METRICS_FILE = "metrics.jsonl"
SCORES_FILE = "scores.npz"
HELDOUT_SCORES_FILE = "heldout-scores.npz"

CHECKPOINT_BYTES = 4 << 30
"""Bytes of a checkpoint at most; the paper's largest head has a hundredth."""

HOLDOUT = "holdout"
"""End of the folder name of runs that were trained without, and scored on, a part of the training videos."""

WATCHED = "watch"
"""Word in the folder name of runs that were trained without that part, and looked at it after each epoch."""

PACKAGES = ("torch", "numpy", "safetensors", "mrrn")
"""Packages whose versions a run records."""

_IDENTITY = (
    "dataset",
    "split",
    "level",
    "pool",
    "seed",
    "recipe",
    "classes",
    "holdout",
    "watch",
    "videos",
    "cache_digest",
)
"""Fields that decide what a run results in. Two runs that differ in one of them are different runs."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides one run, and what it ran with. Written beside its checkpoint and inside it."""

    dataset: str
    split: int
    level: Level
    pool: Pool
    seed: int
    recipe: Recipe
    classes: tuple[str, ...]
    """Class names in label order."""
    holdout: bool
    """Whether a part of the training split is held out, and scored in place of the test half."""
    watch: bool = False
    """Whether that part is held out, and its loss and accuracy are measured after each epoch."""
    variant: str
    """End of the folder's name, which says what differs from the dataset's usual recipe; empty if nothing does."""
    videos: Mapping[str, int]
    """Number of videos that it learns from (`training`), scores (`scored`), and, if any, watches (`watched`)."""
    cache_digest: str
    """Digest of the cache's fingerprint and of the split's videos, labels and frame counts."""
    weights: str
    """Name of the backbone's weights."""
    fingerprint: Mapping[str, Any]
    """The cache's fingerprint: `identity` and `environment`."""
    versions: Mapping[str, str]
    """Versions of Python and of the libraries that the run was started with."""

    @property
    def channels(self) -> int:
        """Width of the features that the head reads."""
        return widths_of(self.fingerprint["identity"])[self.level]

    @property
    def clips(self) -> ClipRule:
        """How this run cuts videos into clips."""
        return self.recipe.clips

    @property
    def scores_file(self) -> str:
        """Name of the file that the run's scores go to."""
        return HELDOUT_SCORES_FILE if self.holdout else SCORES_FILE

    @property
    def name(self) -> str:
        """Name of this run and those of the other levels: their folders' without the level."""
        return run_name(self.pool, self.seed, self.variant)

    def folder(self, workspace: Workspace) -> Path:
        """Returns the run's folder."""
        return workspace.run(self.dataset, self.split, self.level, self.pool, self.seed, self.variant)

    def to_json(self) -> dict[str, Any]:
        """All fields as values that JSON can hold."""
        # msgspec leaves out fields that were missing where a recipe was read, and so have their defaults.
        return {**msgspec.to_builtins(self), "recipe": self.recipe.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "RunConfig":
        """The inverse of `to_json`, which ignores fields it does not know.

        Raises `TrainingError` if a field is missing or its value unusable.
        """
        try:
            # Replaced by itself, because msgspec leaves a field that is missing out of the object, default or not.
            return replace(msgspec.convert({**value, "recipe": Recipe.from_json(value["recipe"])}, cls))
        except (msgspec.ValidationError, TypeError, KeyError) as error:
            raise TrainingError(f"a run's configuration cannot be read: {error!r}") from error

    def described(self, names: Iterable[str]) -> dict[str, Any]:
        """Returns the fields called `names`, the recipe's name and the clip rule: for files made from this run."""
        value = self.to_json()
        return {**{name: value[name] for name in names}, "recipe": self.recipe.name, "clips": value["recipe"]["clips"]}

    def differences(self, other: "RunConfig") -> list[str]:
        """Returns a text for each field in which the two runs differ, if that changes the results."""
        mine, theirs = self.to_json(), other.to_json()
        for value in (mine, theirs):
            # A reworded summary does not make another recipe.
            del value["recipe"]["summary"]
        if "auto" in (self.recipe.precision, other.recipe.precision):
            # A run keeps the precision that it was begun with, wherever it goes on.
            del mine["recipe"]["precision"], theirs["recipe"]["precision"]
        return [_difference(name, mine[name], theirs[name]) for name in _IDENTITY if mine[name] != theirs[name]]


def _difference(name: str, mine: Any, theirs: Any) -> str:
    if isinstance(mine, dict) and isinstance(theirs, dict):
        keys = sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))
        return ", ".join(f"{name}.{key} is {mine.get(key)!r}, was {theirs.get(key)!r}" for key in keys)
    if name == "cache_digest":
        return "the cache's fingerprint or videos have changed"
    return f"{name} is {mine!r}, was {theirs!r}"


def _short(value: Any) -> str:
    if isinstance(value, ClipRule):
        kept = "all" if value.keep == "all" else f"{value.max_clips}-{value.keep}"
        return f"{value.length}-{value.stride}-{kept}" + (f"-fps{value.fps:g}" if value.fps else "")
    if isinstance(value, Mapping):
        return "_".join(sorted({f"{each:g}" for each in value.values()}))
    return f"{value:g}" if isinstance(value, float) else str(value)


def variant_of(
    recipe: Recipe,
    usual: Recipe,
    *,
    holdout: bool,
    watch: bool = False,
    recipes: Mapping[str, Recipe] = MappingProxyType(RECIPES),
) -> str:
    """Returns the end of a run folder's name: what differs from the dataset's usual recipe, which is among `recipes`.

    small with 4 layers, small is usual   -> l4
    paper with the LSTM, small is usual   -> paper-lstm

    Of `linear` it says all clips but the paper's: heads of one dataset may have different ones beside them.
    """
    parts = [*([] if recipe.name == usual.name else [recipe.name]), *_changes(recipe, recipes).values()]
    return "-".join([*parts, *[WATCHED] * watch, *[HOLDOUT] * holdout])


def _changes(recipe: Recipe, recipes: Mapping[str, Recipe]) -> dict[str, str]:
    """The fields in which `recipe` differs from the one of its name, and what a folder's name says of each."""
    base = RECIPES[LINEAR] if recipe.name == LINEAR else recipes.get(recipe.name, recipe)
    return {
        name: f"{knob.word}{_short(getattr(recipe, name))}"
        for name, knob in KNOBS.items()
        if getattr(recipe, name) != getattr(base, name)
        # Asking for a number of epochs also sets `min_steps` to 0, which else adds epochs.
        or (name == "epochs" and recipe.min_steps != base.min_steps)
    }


def train_command(config: RunConfig, recipes: Mapping[str, Recipe], *, holdout: bool = False) -> list[str]:
    """Words after `mrrn` that train all levels as `config` was trained; `holdout`: the held-out runs beside them.

    What `mrrn train` has no option for is one point of a sweep, which trains the seeds below this one, too.
    """
    recipe = config.recipe
    # Not what a recipe of this name was before, nor the precision that the device decided: the folder says neither.
    changed = [name for name, part in _changes(recipe, recipes).items() if part in config.variant]
    values = {str(KNOBS[name].axis): getattr(recipe, name) for name in changed}
    texts = {axis: _short(each) if isinstance(each, Mapping) else str(each) for axis, each in values.items()}
    where = ["--dataset", config.dataset, "--split", str(config.split)]
    given = {"pool": config.pool, "recipe": recipe.name, **texts}
    if all(KNOBS[name].help for name in changed):
        options = [word for axis, text in given.items() for word in (f"--{axis}", text)]
        command = ["train", *where, "--seed", str(config.seed), *options, *["--watch"] * config.watch]
    else:
        grid = [word for axis, text in given.items() for word in ("--grid", f"{axis}={text.replace(',', '+')}")]
        command = ["sweep", *where, "--seeds", str(config.seed + 1), *grid]
    return [*command, *["--holdout"] * holdout]


def baseline_of(config: RunConfig) -> RunConfig:
    """Returns the run that a head has to beat, which learns from the same videos.

    All seeds and poolings share it, but for seeds that say what is held out.

    high-max-seed3-h512 -> high-mean-seed0-linear
    """
    recipe = linear_beside(config.recipe)
    variant = variant_of(recipe, config.recipe, holdout=config.holdout, watch=config.watch)
    seed = config.seed if config.holdout or config.watch else 0
    return replace(config, pool="mean", seed=seed, recipe=recipe, variant=variant)


def version_of(package: str) -> str:
    """Returns the version of an installed package, or "not installed", as a checkout is that is only on the path."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def write_config(folder: Path, config: RunConfig, status: Status) -> None:
    """Write config.json: the status, the configuration, and once more the fields that readers want most often."""
    recipe = config.recipe.to_json()
    often = {"clips": recipe["clips"], **{name: recipe[name] for name in ("cell", "hidden", "layers")}}
    write_sealed_json(folder / CONFIG_FILE, {"status": status, **config.to_json(), **often})


@functools.cache
def note_unchecked(folder: Path) -> None:
    """Say, once, that some files in `folder`, of runs or a bundle, have no checksums, as of earlier versions."""
    say(
        f"note: {visible(str(folder))} holds files of an earlier version, which carry no checksums: damage to them "
        "would go unnoticed",
        err=True,
    )


def read_config(folder: Path) -> tuple[RunConfig, Status] | None:
    """Returns the configuration and status of the run in `folder`, or None if there is none.

    Raises `TrainingError` if config.json cannot be read.
    """
    path = folder / CONFIG_FILE
    try:
        value, sealed = read_json_and_seal(path)
        if not sealed:
            note_unchecked(folder.parent)
        return RunConfig.from_json(value), msgspec.convert(value.get("status"), Status)
    except FileNotFoundError:
        return None
    except (ValueError, msgspec.ValidationError, TrainingError) as error:
        for each in (folder, *folder.parents):
            if each.exists() and not each.is_dir():
                raise TrainingError(f"{each} is a file where a folder of runs is expected; move it away") from None
        raise TrainingError(
            f"{path} is not a configuration written by this program: {error}; train again with --fresh"
        ) from error


def with_recorded_recipe(config: RunConfig, workspace: Workspace, *, asked: bool = True) -> RunConfig:
    """Returns `config` with the recipe that its folder, or that of the same run on another level, has already.

    What a recipe's name stands for, and what is usual, may have changed since those runs were begun; the levels of one
    run are trained alike. The folder's name says in what both differ from the usual. A recipe that was `asked` for by
    its name is not replaced by another one.
    """
    for level in (config.level, *LEVELS):
        found = read_config(replace(config, level=level).folder(workspace))
        if found and (not asked or config.recipe.name in (name := found[0].recipe.name, RETIRED.get(name))):
            return replace(config, recipe=found[0].recipe)
    return config


def with_decided_precision(config: RunConfig, folder: Path, device: str) -> RunConfig:
    """Returns `config` with `auto` decided: as the run in `folder` was begun, else by what the device multiplies."""
    if config.recipe.precision != "auto":
        return config
    found = read_config(folder)
    begun = found[0].recipe.precision if found else precision_on(config.recipe, device)
    return replace(config, recipe=replace(config.recipe, precision=begun))


def precision_on(recipe: Recipe, device: str) -> Precision:
    """Returns the precision of products that `recipe` asks for; in place of `auto` what the device multiplies."""
    if recipe.precision != "auto":
        return recipe.precision
    return "bf16" if multiplies_bf16(device) else "fp32"


def is_another(folder: Path, wanted: RunConfig) -> bool:
    """Returns whether `folder` holds another run than `wanted`, or one that cannot be read."""
    try:
        state_of(folder, wanted)
    except TrainingError:
        return True
    return False


def state_of(folder: Path, wanted: RunConfig) -> Literal["new", "unfinished", "finished"]:
    """Returns how far the run `wanted` is. Raises `TrainingError` if `folder` holds another run.

    A run on another state of the cache is another run. A finished run without its scores is unfinished.
    """
    found = read_config(folder)
    if found is None:
        return "new"
    config, status = found
    differences = wanted.differences(config)
    if differences:
        raise TrainingError(
            f"{folder} holds a run with other settings or on another state of the cache: {'; '.join(differences)}. "
            "Train it again from the start with --fresh (FRESH=1), which replaces it, or remove that folder"
        )
    files = [wanted.scores_file, *[HELDOUT_SCORES_FILE] * wanted.watch]
    return "finished" if status == "finished" and all((folder / name).exists() for name in files) else "unfinished"
