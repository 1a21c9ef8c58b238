"""A run: what it is made of, the folder it lives in, whether it is done. Plain data and small files, no torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from cache.clips import ClipRule
from cache.common.errors import TrainingError
from cache.common.files import write_json_durably
from cache.common.workspace import Workspace
from cache.fingerprint import Level
from train.recipes import KNOBS, RECIPES, Pool, Recipe

Status = Literal["training", "finished"]

CONFIG_FILE = "config.json"
CHECKPOINT_FILE = "checkpoint.safetensors"
METRICS_FILE = "metrics.jsonl"
SCORES_FILE = "scores.npz"
HELDOUT_SCORES_FILE = "heldout-scores.npz"

_DECIDING = ("dataset", "split", "level", "pool", "seed", "recipe", "classes", "holdout", "videos", "cache_digest")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that made one run; written beside its checkpoint and inside it."""

    dataset: str
    split: int
    level: Level
    pool: Pool
    seed: int
    recipe: Recipe
    classes: tuple[str, ...]
    """Class names in label order."""
    holdout: bool
    """Trained without a held-out part of the training split, and scored on that part alone."""
    variant: str
    """End of the folder's name: what differs from the dataset's usual settings; empty for those."""
    videos: Mapping[str, int]
    """Videos that it learned from (`training`) and that it scores (`scored`)."""
    cache_digest: str
    """Digest of the cache's fingerprint and of the split's videos, labels and frame counts."""
    weights: str
    """What the backbone ran with, in words."""
    fingerprint: Mapping[str, Any]
    """The cache's fingerprint: `identity` and `environment`."""
    versions: Mapping[str, str]
    """Versions of Python and of the libraries that the run was started with."""

    @property
    def clips(self) -> ClipRule:
        """How this run cuts videos into clips."""
        return self.recipe.clips

    @property
    def scores_file(self) -> str:
        """Name of the file that the run's scores go to."""
        return HELDOUT_SCORES_FILE if self.holdout else SCORES_FILE

    def folder(self, workspace: Workspace) -> Path:
        """Where the run lives."""
        return workspace.run(self.dataset, self.split, self.level, self.pool, self.seed, self.variant)

    def to_json(self) -> dict[str, Any]:
        """All fields as values that JSON can hold."""
        value: dict[str, Any] = msgspec.to_builtins(self)
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "RunConfig":
        """The inverse of `to_json`, which ignores fields it does not know.

        Raises `TrainingError` if a field is missing or its value unusable.
        """
        try:
            return msgspec.convert({**value, "recipe": Recipe.from_json(value["recipe"])}, cls)
        except (msgspec.ValidationError, TypeError, KeyError) as error:
            raise TrainingError(f"a run's configuration cannot be read: {error!r}") from error

    def differences(self, other: "RunConfig") -> list[str]:
        """What tells the results of this run from those of `other`, one text for each field."""
        mine, theirs = self.to_json(), other.to_json()
        for value in (mine, theirs):
            # Words about the recipe may be put better without making it another one.
            del value["recipe"]["summary"]
        return [_difference(name, mine[name], theirs[name]) for name in _DECIDING if mine[name] != theirs[name]]


def _difference(name: str, mine: Any, theirs: Any) -> str:
    if isinstance(mine, dict) and isinstance(theirs, dict):
        keys = sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))
        return ", ".join(f"{name}.{key} is {mine.get(key)!r}, was {theirs.get(key)!r}" for key in keys)
    if name == "cache_digest":
        return "the cache's fingerprint or videos are others than they were"
    return f"{name} is {mine!r}, was {theirs!r}"


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "_".join(sorted({f"{each:g}" for each in value.values()}))
    return f"{value:g}" if isinstance(value, float) else str(value)


def variant_of(recipe: Recipe, usual: Recipe, *, holdout: bool) -> str:
    """End of a run folder's name: what differs from the dataset's usual recipe, in few words.

    small with 4 layers where small is usual -> l4
    paper with the LSTM where small is usual -> paper-lstm
    """
    base = RECIPES.get(recipe.name, recipe)
    parts = [] if recipe.name == usual.name else [recipe.name]
    for name, knob in KNOBS.items():
        # A number of epochs is exact: it also takes away the steps that they are else added for.
        exact = name == "epochs" and recipe.min_steps != base.min_steps
        if exact or getattr(recipe, name) != getattr(base, name):
            parts.append(f"{knob.word}{_short(getattr(recipe, name))}")
    return "-".join([*parts, "holdout"] if holdout else parts)


def write_config(folder: Path, config: RunConfig, status: Status) -> None:
    """Write config.json: the configuration, what readers ask for most, and how far the run is."""
    recipe = config.recipe.to_json()
    often = {"clips": recipe["clips"], **{name: recipe[name] for name in ("cell", "hidden", "layers")}}
    write_json_durably(folder / CONFIG_FILE, {"status": status, **config.to_json(), **often})


def read_config(folder: Path) -> tuple[RunConfig, Status] | None:
    """Configuration and status of the run in `folder`; None where there is none. TrainingError where unreadable."""
    path = folder / CONFIG_FILE
    try:
        value = json.loads(path.read_bytes())
        return RunConfig.from_json(value), msgspec.convert(value.get("status"), Status)
    except FileNotFoundError:
        return None
    except (ValueError, msgspec.ValidationError, TrainingError) as error:
        raise TrainingError(
            f"{path} is not a configuration written by this program: {error}; train again with --fresh"
        ) from error


def state_of(folder: Path, wanted: RunConfig) -> Literal["new", "unfinished", "finished"]:
    """How far the run `wanted` is in `folder`; TrainingError where another run, or one of another cache, lies there."""
    found = read_config(folder)
    if found is None:
        return "new"
    config, status = found
    differences = wanted.differences(config)
    if differences:
        raise TrainingError(
            f"{folder} holds a run of other settings or of another state of the cache: {'; '.join(differences)}. "
            "Train it again from the start with --fresh (FRESH=1), which replaces it"
        )
    return "finished" if status == "finished" and (folder / wanted.scores_file).exists() else "unfinished"
