"""Recipes: every setting of how a head is built and trained, declared once. Plain data, no torch."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

import msgspec

from cache.clips import CLIPS_HELP, ClipRule
from cache.common.errors import TrainingError
from cache.fingerprint import LEVELS, Level

Cell = Literal["sru", "lstm", "gru", "mean", "linear"]
Pool = Literal["mean", "max", "attention"]
Schedule = Literal["step", "cosine"]
Precision = Literal["auto", "fp32", "bf16"]
Inputs = Literal["raw", "standardised"]
Shortcut = Literal["none", "mean", "moments"]
Balance = Literal["none", "loss", "sample"]

CELLS: tuple[Cell, ...] = get_args(Cell)
POOLS: tuple[Pool, ...] = get_args(Pool)
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
INPUTS: tuple[Inputs, ...] = get_args(Inputs)
SHORTCUTS: tuple[Shortcut, ...] = get_args(Shortcut)
BALANCES: tuple[Balance, ...] = get_args(Balance)

AVERAGING: tuple[Cell, ...] = ("mean", "linear")
"""Cells that average the frames, so that there is nothing to pool."""

LINEAR = "linear"
"""The recipe that is trained beside all others, as what they have to beat."""

PAPER_SOURCES = ("ucf101", "hmdb51")
"""Sources of datasets that the paper's recipe is for, and whose videos are cut as the paper cut them."""

PAPER_FROM_CLIPS = 5_000
"""Training splits of these with fewer clips, parts of them, are trained by the recipe `small`, as own data is."""


@dataclass(frozen=True, kw_only=True)
class Knob:
    """What one field of a recipe can hold, and its names on the command line, in sweeps and in run folders."""

    kind: type[int] | type[float] | type[ClipRule] | tuple[str, ...]
    """Kind of number, the names to choose from, or ClipRule: its text."""
    least: int = 0
    """Smallest number that it can hold."""
    most: float = math.inf
    """No number above this one."""
    below: float = math.inf
    """No number from this one on."""
    axis: str | None = None
    """Name in `--grid AXIS=A,B`; None if neither sweeps nor the command line can change the field."""
    word: str = ""
    """What stands before the value in the name of a variant's run folder."""
    help: str | None = None
    """Help of the option `--AXIS`; None if there is no such option."""
    place: int = 0
    """Knobs of a higher place come later in help and folder names; config.json has them in the order of fields."""

    @property
    def rule(self) -> str:
        """What a value has to satisfy, in words that follow "it"."""
        if isinstance(self.kind, tuple):
            return f"must be one of {', '.join(self.kind)}"
        if self.kind is ClipRule:
            return "must be a clip rule"
        if self.below < math.inf:
            return f"must be in [{self.least}, {self.below:g})"
        return f"must be in [{self.least}, {self.most:g}]" if self.most < math.inf else f"must be at least {self.least}"

    def accepts(self, value: Any) -> bool:
        """Whether the field can hold `value`."""
        if isinstance(self.kind, tuple):
            return value in self.kind
        if self.kind is ClipRule:
            return isinstance(value, ClipRule)
        return bool(self.least <= value <= self.most and (value < self.below or self.below == math.inf))


def _knob(kind: Any, **described: Any) -> dict[str, Knob]:
    return {"knob": Knob(kind=kind, **described)}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a head is built and trained. The defaults are the paper's (section 4.2).

    Each field is described once, by its `Knob`: the options of `mrrn train`, the axes of a sweep, the names of run
    folders and the checks are made from it. Raises `TrainingError` for a value that its field cannot hold.
    """

    name: str = "paper"
    summary: str = "the paper's words, line by line"
    """What the recipe changes against `paper`, and what that brings."""
    clips: ClipRule = field(
        default_factory=ClipRule, metadata=_knob(ClipRule, axis="clips", word="clips", place=3, help=CLIPS_HELP)
    )
    """How videos are cut into clips, in training and in testing. `recipes_for` says which ones own videos keep."""
    inputs: Inputs = field(
        default="raw",
        metadata=_knob(INPUTS, axis="inputs", help="Features as they are, or standardised. [default: the recipe's]"),
    )
    """`raw`, or `standardised`: minus each channel's mean, over its deviation, both of the training clips' features."""
    cell: Cell = field(
        default="sru", metadata=_knob(CELLS, axis="cell", help="What runs over time. [default: the recipe's]")
    )
    """The network over time: `sru`, `lstm`, `gru`, or `mean` for plain averaging over the frames. `linear` is logistic
    regression on each video's mean feature (`train/linear.py`); no field below this one matters to it but `views`."""
    hidden: int = field(
        default=1024, metadata=_knob(int, least=1, axis="hidden", word="h", help="Units of each recurrent layer.")
    )
    """Units of each recurrent layer (section 5.1)."""
    layers: int = field(default=3, metadata=_knob(int, least=1, axis="layers", word="l", help="Recurrent layers."))
    """Recurrent layers, one on top of the other (section 5.1)."""
    shortcut: Shortcut = field(default="none", metadata=_knob(SHORTCUTS, axis="shortcut", word="shortcut-"))
    """A linear layer past the cell, whose logits are added to a clip's: on its mean input, or on the `moments` of each
    channel over time (`train.heads.moments`), standardised. The cell learns what a regression misses."""
    input_dropout: float = field(default=0.0, metadata=_knob(float, below=1, axis="idropout", word="idropout"))
    """Share of the inputs set to zero in a clip: of the cell's channels, the same ones at all steps, and of what the
    shortcut sees."""
    variational_dropout: float = field(default=0.5, metadata=_knob(float, below=1, axis="vdropout", word="vdropout"))
    """Share of each layer's inputs set to zero before its linear transformations, the same ones at all steps."""
    dropout: float = field(default=0.0, metadata=_knob(float, below=1))
    """Share of outputs set to zero between recurrent layers."""
    epochs: int = field(
        default=12, metadata=_knob(int, least=1, axis="epochs", word="e", help="Times each training clip is seen.")
    )
    """How often each training clip is seen."""
    min_steps: int = field(default=0, metadata=_knob(int))
    """Epochs are added until training has at least this many optimizer steps."""
    batch: int = field(
        default=28, metadata=_knob(int, least=1, axis="batch", word="b", help="Clips in one optimizer step.")
    )
    """Clips in one optimizer step."""
    learning_rate: Mapping[Level, float] = field(
        default_factory=lambda: {"low": 1e-4, "mid": 1e-4, "high": 1e-5},
        metadata=_knob(float, axis="lr", word="lr", help="First learning rate."),
    )
    """Adam's first learning rate for each level (sections 4.2 and 5.2)."""
    schedule: Schedule = field(default="step", metadata=_knob(SCHEDULES, axis="schedule"))
    """`step`: multiplied by `drop_factor` after `drop_after_epochs`; `cosine`: down to a hundredth over all epochs."""
    drop_after_epochs: int = field(default=8, metadata=_knob(int))
    """Epochs at the first learning rate, for the schedule `step`."""
    drop_factor: float = 0.1
    """Factor of the learning rate after `drop_after_epochs`."""
    weight_decay: float = field(default=0.0, metadata=_knob(float, axis="decay", word="decay"))
    """Decoupled weight decay (AdamW); 0 is plain Adam."""
    balance: Balance = field(
        default="none",
        metadata=_knob(
            BALANCES,
            axis="balance",
            word="balance-",
            help="Classes of few clips count as much as others: by weights in the loss, or by drawing them more often.",
        ),
    )
    """Whether each class has the same part in training: `loss` weights clips by 1 / (clips of their class), `sample`
    draws as many clips of each class in an epoch."""
    label_smoothing: float = field(default=0.0, metadata=_knob(float, below=1, axis="smoothing", word="smoothing"))
    """Share of the target spread evenly over all classes."""
    feature_noise: float = field(default=0.0, metadata=_knob(float, axis="noise", word="noise"))
    """Standard deviation of the noise around 1 that each feature is multiplied by (`train/steps.py`)."""
    views: int = field(default=0, metadata=_knob(int, axis="views", word="views", place=1))
    """Views of each video that training clips are drawn from, the cache's first ones; 0 for all of them."""
    mixup: float = field(default=0.0, metadata=_knob(float, most=0.5, axis="mixup", word="mixup"))
    """Largest share of another clip that is blended into each clip, features and target alike; at most 0.5."""
    precision: Precision = field(
        default="fp32",
        metadata=_knob(
            get_args(Precision),
            axis="precision",
            place=2,
            help="Of the products while training; auto is bf16 where the device multiplies it. [default: the recipe's]",
        ),
    )
    """Of the head's products in training: `fp32`, or `bf16` (autocast; weights, states and scores stay float32). `auto`
    becomes one of both when a run is begun (`train.config.with_decided_precision`)."""

    def __post_init__(self) -> None:
        self._check("name", bool(self.name), "must not be empty")
        rates = [self.learning_rate.get(level, math.nan) for level in LEVELS]
        self._check("learning_rate", all(0 < rate < math.inf for rate in rates), "must be positive for each level")
        for each in fields(self):
            if each.metadata and each.name != "learning_rate":
                knob = each.metadata["knob"]
                self._check(each.name, knob.accepts(getattr(self, each.name)), knob.rule)

    def _check(self, name: str, good: bool, rule: str) -> None:
        if not good:
            raise TrainingError(f"recipe {self.name!r}: {name} is {getattr(self, name)!r}; it {rule}")

    def epochs_for(self, steps_per_epoch: int) -> int:
        """Returns the number of epochs for a training split with `steps_per_epoch` optimizer steps an epoch."""
        return max(self.epochs, math.ceil(self.min_steps / steps_per_epoch))

    def rate(self, level: Level, epoch: int, epochs: int) -> float:
        """Returns the learning rate of `epoch` (from 0) of `epochs`.

        paper, high: 1e-5 in epochs 0..7, 1e-6 in epochs 8..11
        """
        first = self.learning_rate[level]
        if self.schedule == "step":
            return first if epoch < self.drop_after_epochs else first * self.drop_factor
        return first * (0.01 + 0.99 * (1 + math.cos(math.pi * epoch / epochs)) / 2)

    def to_json(self) -> dict[str, Any]:
        """All fields as values that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Recipe":
        """The inverse of `to_json`. Raises `TrainingError` if a field is unknown or its value unusable."""
        try:
            unknown = {*value} - _names(cls) | {*value["clips"]} - _names(ClipRule)
            if not unknown:
                if type(shortcut := value.get("shortcut")) is int:  # as of before it had `moments`
                    value = {**value, "shortcut": SHORTCUTS[shortcut]}
                return msgspec.convert(value, cls)
        except (msgspec.ValidationError, TypeError, LookupError) as error:
            raise TrainingError(f"recipe cannot be read: {error!r}") from error
        raise TrainingError(f"recipe has unknown fields {', '.join(sorted(unknown))}; another version wrote it")


def _names(described: type) -> set[str]:
    return {each.name for each in fields(described)}


_KNOBS: dict[str, Knob] = {each.name: each.metadata["knob"] for each in fields(Recipe) if each.metadata}

KNOBS = {name: knob for name, knob in sorted(_KNOBS.items(), key=lambda each: each[1].place) if knob.axis}
"""Fields that sweeps and the command line can change, in the order in which they are listed."""

RETIRED: dict[str, str] = {"light-dropout": "small"}
"""Recipes that there are no more, with their successors. Runs by them still open and continue."""

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(),
        Recipe(
            name="paper-24fps",
            summary="`paper` with clips counted at 24 frames a second, which gives HMDB-51 the paper's number of clips",
            clips=ClipRule(fps=24.0),
        ),
        Recipe(
            name="small",
            summary="for own data: one layer of 64 units beside a linear layer on what each channel does over time "
            "(mean, deviation, steps, slope), standardised, half of the inputs dropped, AdamW on a cosine schedule; "
            "seconds where `paper` takes minutes",
            inputs="standardised",
            hidden=64,
            layers=1,
            shortcut="moments",
            input_dropout=0.5,
            variational_dropout=0.1,
            learning_rate=dict.fromkeys(LEVELS, 1e-3),
            weight_decay=1.0,
            schedule="cosine",
            batch=32,
            epochs=6,
            min_steps=600,
            precision="auto",
        ),
        Recipe(
            name=LINEAR,
            summary="logistic regression on each video's mean feature, in seconds: trained beside every other recipe, "
            "as what a head has to beat",
            inputs="standardised",
            cell="linear",
        ),
    )
}


def recipes_for(source: str) -> dict[str, Recipe]:
    """Returns the recipes for datasets of `source`: of own videos all but the paper's keep `even` clips."""
    return {
        name: recipe
        if source in PAPER_SOURCES or name.startswith("paper")
        else replace(recipe, clips=replace(recipe.clips, keep="even"))
        for name, recipe in RECIPES.items()
    }


def default_recipe(source: str, training_clips: int) -> tuple[str, str]:
    """Returns the recipe's name for a training split of `training_clips` clips, and the reason, for the user."""
    if source not in PAPER_SOURCES:
        return "small", "the default for own data"
    clips = f"{training_clips:,} training clips"
    if training_clips < PAPER_FROM_CLIPS:
        return "small", f"{clips}, fewer than {PAPER_FROM_CLIPS:,}"
    return "paper", f"{clips} of {source}, at least {PAPER_FROM_CLIPS:,}"


def with_overrides(recipe: Recipe, **given: Any) -> Recipe:
    """Returns `recipe` with the fields of `given` that are not None; of `linear` only clips and views matter.

    `epochs` is then exact: `min_steps` becomes 0. `learning_rate` is one number for all levels. `clips` is text that
    names the parts to change.
    """
    changed = {name: value for name, value in given.items() if value is not None}
    if "epochs" in changed:
        changed["min_steps"] = 0
    if "learning_rate" in changed:
        changed["learning_rate"] = dict.fromkeys(LEVELS, changed["learning_rate"])
    if "clips" in changed:
        changed["clips"] = recipe.clips.changed(changed["clips"])
    made = replace(recipe, **changed)
    return linear_beside(made) if made.cell == LINEAR else made


def linear_beside(recipe: Recipe) -> Recipe:
    """Returns the recipe `linear` on the clips and views of `recipe`."""
    return replace(RECIPES[LINEAR], clips=recipe.clips, views=recipe.views)


def check_pool(cell: Cell, pool: Pool) -> None:
    """Raises `TrainingError` if `pool` does not go with `cell`."""
    if cell in AVERAGING and pool != "mean":
        raise TrainingError(f"cell {cell} averages over time itself; pool is {pool!r}: use --pool mean")
