"""Grids: the points of a sweep, each a level, a pooling and a recipe. Plain data, no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType
from typing import Any

from cache.clips import ClipRule
from cache.common.errors import TrainingError
from cache.fingerprint import LEVELS, Level
from train.recipes import AVERAGING, KNOBS, POOLS, RECIPES, RETIRED, Pool, Recipe, with_overrides

AXES: dict[str, Any] = {
    "level": LEVELS,
    "pool": POOLS,
    "recipe": tuple(sorted(RECIPES)),
    **{str(knob.axis): knob.kind for knob in KNOBS.values()},
}
"""What can be varied: each axis with its kind of number, or the names to choose from."""

TABLES: dict[str, dict[str, tuple[Any, ...]]] = {
    "1": {"level": ("high",), "hidden": (256, 512, 1024), "layers": (3, 4, 5)},
    "2": {"level": LEVELS, "pool": ("mean", "max")},
    "fusion": {"level": LEVELS},
}
"""The paper's grids: Table 1 (section 5.1), Table 2 (5.2), and the levels fused by several weights (5.3)."""


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """One point of a grid."""

    level: Level
    pool: Pool
    recipe: Recipe
    varied: tuple[tuple[str, Any], ...]
    """Values on the varied axes but the level; they name the row of the table."""

    @property
    def label(self) -> str:
        """Name of the row: `hidden 256, layers 3`, or the pooling if only the level varies."""
        return ", ".join(f"{name} {value}" for name, value in self.varied) or f"{self.pool} pooling"


def parse_axis(text: str) -> tuple[str, tuple[Any, ...]]:
    """Reads `hidden=256,512` as ("hidden", (256, 512)). Raises `TrainingError` for other axes and values.

    Values of the axis `clips` are texts for `ClipRule.changed`, with + for commas: `clips=keep=first,keep=all+fps=10`.
    """
    name, _, values = text.partition("=")
    if name not in AXES or not values:
        raise TrainingError(f"grid {text!r} is not AXIS=VALUE,VALUE with an axis of {', '.join(AXES)}")
    kind = AXES[name]
    given = values.split(",")
    if name == "recipe" and (old := next((value for value in given if value in RETIRED), None)):
        raise TrainingError(f"grid {text!r}: there is no recipe {old!r} any more; {RETIRED[old]!r} takes its place")
    if isinstance(kind, tuple):
        wrong = [value for value in given if value not in kind]
        if wrong:
            raise TrainingError(f"grid {text!r}: {wrong[0]!r} is not one of {', '.join(kind)}")
        return name, tuple(given)
    if kind is ClipRule:
        rules = tuple(value.replace("+", ",") for value in given)
        try:
            _ = [ClipRule().changed(rule) for rule in rules]
        except ValueError as error:
            raise TrainingError(f"grid {text!r}: {error}; several parts of one rule are joined by +") from None
        return name, rules
    try:
        return name, tuple(kind(value) for value in given)
    except ValueError:
        raise TrainingError(f"grid {text!r}: {name} takes numbers separated by commas") from None


def grid_points(
    axes: Mapping[str, Sequence[Any]], usual: Recipe, recipes: Mapping[str, Recipe] = MappingProxyType(RECIPES)
) -> list[SweepPoint]:
    """Returns every combination of the axes' values; the rest is as in the usual recipe, mean pooling, all levels.

    Averaging over time (cells mean and linear) is combined with mean pooling only. Raises `TrainingError` if no
    combination is left.
    """
    complete = {**axes, "level": axes.get("level", LEVELS), "pool": axes.get("pool", ("mean",))}
    shown = [name for name in complete if name != "level" and len(complete[name]) > 1]
    made = []
    for values in product(*complete.values()):
        point = dict(zip(complete, values, strict=True))
        changes = {name: point.get(str(knob.axis)) for name, knob in KNOBS.items()}
        recipe = with_overrides(recipes[point["recipe"]] if "recipe" in point else usual, **changes)
        if recipe.cell in AVERAGING and point["pool"] != "mean":
            continue
        varied = tuple((name, point[name]) for name in shown)
        made.append(SweepPoint(level=point["level"], pool=point["pool"], recipe=recipe, varied=varied))
    if not made:
        raise TrainingError("no combination of the grid can be trained: cells that average go with pool mean only")
    return made
