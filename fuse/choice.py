"""Which runs are meant: the options that all of fuse's commands share, and the folders they stand for."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from cache.console import choose_dataset, dataset_option, work_option
from cache.schema import LEVELS, Level
from cache.workspace import Workspace

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
