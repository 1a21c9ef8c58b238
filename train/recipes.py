"""Recipes: every choice that decides how a head is trained. Plain data, no torch."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from cache.clips import ClipRule
from cache.common.errors import TrainingError
from cache.fingerprint import LEVELS, Level

Cell = Literal["sru", "lstm", "gru", "mean"]
Pool = Literal["mean", "max", "attention"]
Schedule = Literal["step", "cosine"]
Precision = Literal["fp32", "bf16"]

CELLS: tuple[Cell, ...] = get_args(Cell)
POOLS: tuple[Pool, ...] = get_args(Pool)
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

SMALL_BELOW_CLIPS = 5_000
"""Training splits with fewer clips than this are trained by the recipe `small` unless another is asked for."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a head is built and trained. The defaults are the paper's words (section 4.2)."""

    name: str = "paper"
    summary: str = "the paper's words, line by line"
    """What it is, or what it changes against `paper`, and what that brings."""
    clips: ClipRule = field(default_factory=ClipRule)
    """How videos are cut into clips, in training and in testing."""
    cell: Cell = "sru"
    """What runs over time: `sru`, `lstm`, `gru`, or `mean` for plain averaging over the frames."""
    hidden: int = 1024
    """Units of each recurrent layer (section 5.1)."""
    layers: int = 3
    """Recurrent layers, one on top of the other (section 5.1)."""
    variational_dropout: float = 0.5
    """Share of each layer's inputs set to zero before its linear transformations, the same ones at all steps."""
    dropout: float = 0.0
    """Share of outputs set to zero between recurrent layers."""
    epochs: int = 12
    """Times that every training clip is seen."""
    min_steps: int = 0
    """Epochs are added until training has at least so many optimizer steps."""
    batch: int = 28
    """Clips in one optimizer step."""
    learning_rate: Mapping[Level, float] = field(default_factory=lambda: {"low": 1e-4, "mid": 1e-4, "high": 1e-5})
    """Adam's first learning rate for each level (sections 4.2 and 5.2)."""
    schedule: Schedule = "step"
    """`step`: multiplied by `drop_factor` after `drop_after_epochs`; `cosine`: down to a hundredth over all epochs."""
    drop_after_epochs: int = 8
    """Epochs at the first learning rate, for the schedule `step`."""
    drop_factor: float = 0.1
    """What the learning rate is multiplied by then."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW); 0 is plain Adam."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over all classes."""
    feature_noise: float = 0.0
    """Standard deviation of the noise around 1 that each feature is multiplied by (`train/steps.py`)."""
    views: int = 0
    """Views of each video that training clips are drawn from, the cache's first ones; 0 for all of them."""
    mixup: float = 0.0
    """Largest share of another clip that is blended into each clip, features and target alike; at most 0.5."""
    precision: Precision = "fp32"
    """Of the head's products in training: `fp32`, or `bf16` (autocast; weights, states and scores stay float32)."""

    def __post_init__(self) -> None:
        _check(self, "name", bool(self.name), "must not be empty")
        _check(self, "cell", self.cell in CELLS, f"must be one of {', '.join(CELLS)}")
        _check(self, "precision", self.precision in PRECISIONS, "must be fp32 or bf16")
        _check(self, "schedule", self.schedule in SCHEDULES, "must be step or cosine")
        for name in ("hidden", "layers", "epochs", "batch"):
            _check(self, name, getattr(self, name) >= 1, "must be at least 1")
        for name in ("min_steps", "drop_after_epochs", "weight_decay", "feature_noise", "views"):
            _check(self, name, getattr(self, name) >= 0, "must be at least 0")
        for name in ("variational_dropout", "dropout", "label_smoothing"):
            _check(self, name, 0 <= getattr(self, name) < 1, "must be in [0, 1)")
        _check(self, "mixup", 0 <= self.mixup <= 0.5, "must be in [0, 0.5]")
        rates = [self.learning_rate.get(level, math.nan) for level in LEVELS]
        _check(self, "learning_rate", all(0 < rate < math.inf for rate in rates), "must be positive for each level")

    def epochs_for(self, steps_per_epoch: int) -> int:
        """Epochs of a training split that takes `steps_per_epoch` optimizer steps an epoch."""
        return max(self.epochs, math.ceil(self.min_steps / steps_per_epoch))

    def rate(self, level: Level, epoch: int, epochs: int) -> float:
        """Learning rate of `epoch` (from 0) of `epochs`.

        paper, high: 1e-5 in epochs 0..7, 1e-6 in epochs 8..11
        """
        first = self.learning_rate[level]
        if self.schedule == "step":
            return first if epoch < self.drop_after_epochs else first * self.drop_factor
        return first * (0.01 + 0.99 * (1 + math.cos(math.pi * epoch / epochs)) / 2)

    def to_json(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Recipe":
        """The inverse of `to_json`; TrainingError where a field is unknown or unusable."""
        unknown = set(value) - {field.name for field in fields(cls)}
        if unknown:
            raise TrainingError(f"recipe has unknown fields {', '.join(sorted(unknown))}; another version wrote it")
        try:
            return cls(**{**value, "clips": ClipRule(**value["clips"])})
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise TrainingError(f"recipe cannot be read: {error!r}") from error


def _check(recipe: Recipe, name: str, good: bool, rule: str) -> None:
    if not good:
        raise TrainingError(f"recipe {recipe.name!r}: {name} is {getattr(recipe, name)!r}; it {rule}")


_SMALL = Recipe(
    name="small",
    summary="for fewer than some thousands of clips: 2 x 256 units, 20 (low, mid) and 100 (high) times "
    "the paper's learning rate on a cosine schedule, at least 400 steps; seconds where `paper` takes minutes",
    hidden=256,
    layers=2,
    learning_rate={"low": 2e-3, "mid": 2e-3, "high": 1e-3},
    schedule="cosine",
    epochs=12,
    min_steps=400,
)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(),
        Recipe(
            name="paper-24fps",
            summary="`paper` with clips counted at 24 frames a second, which gives HMDB-51 the paper's number of clips",
            clips=ClipRule(fps=24.0),
        ),
        _SMALL,
        replace(
            _SMALL,
            name="light-dropout",
            summary="`small` with variational dropout 0.1 in place of 0.5: on held-out fifths of 90 UCF-101 videos the "
            "fused log loss fell from 0.43 to 0.37, and 68 % instead of 59 % were right by the low level",
            variational_dropout=0.1,
        ),
    )
}


def default_recipe(training_clips: int) -> tuple[Recipe, str]:
    """The recipe for a training split of so many clips, and why, in words for the user."""
    if training_clips >= SMALL_BELOW_CLIPS:
        return RECIPES["paper"], f"{training_clips:,} training clips, at least {SMALL_BELOW_CLIPS:,}"
    return RECIPES["small"], f"{training_clips:,} training clips, fewer than {SMALL_BELOW_CLIPS:,}"


def with_overrides(recipe: Recipe, **given: Any) -> Recipe:
    """`recipe` with the fields changed that are not None; `epochs` then is exact, `learning_rate` for all levels."""
    changed = {name: value for name, value in given.items() if value is not None}
    if "epochs" in changed:
        changed["min_steps"] = 0
    if "learning_rate" in changed:
        changed["learning_rate"] = dict.fromkeys(LEVELS, changed["learning_rate"])
    return replace(recipe, **changed)
