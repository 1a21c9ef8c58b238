"""Which runs a command is about: the three levels' runs of one dataset, split, pooling and seed, and its options."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from cache.common.console import NameChoice, choose_dataset, dataset_option, work_option
from cache.common.errors import ScoreError
from cache.common.text import some
from cache.common.workspace import Workspace
from cache.fingerprint import LEVELS, Level
from train.config import HOLDOUT, SCORES_FILE, WATCHED, read_config, variant_of
from train.recipes import LINEAR, POOLS, RECIPES, RETIRED, with_overrides
from train.split import open_split


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
    run: str | None = None
    """Name of the runs, as `run_folders` takes it, in place of recipe and clips; the other fields are theirs."""

    def folder(self, level: Level, *, holdout: bool = False) -> Path:
        """Folder of a level's run, or of the run with its held-out scores, which a run that watches has itself.

        Raises `TrainingError` if the usual run has to be read for it and cannot be.
        """
        if self.run is not None:
            usual = run_folders(self.workspace.runs(self.dataset, self.split), self.run)[level]
            return usual.with_name(f"{usual.name}-{HOLDOUT}") if holdout and not self.watch else usual
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
        options = [*self.work_option(), "--dataset", self.dataset]
        options += f"--split {self.split} --pool {self.pool} --seed {self.seed}".split()
        options += ["--recipe", self.recipe] if self.recipe else []
        options += ["--clips", self.clips] if self.clips is not None else []
        return [*options, "--watch"] if self.watch else options

    def work_option(self) -> list[str]:
        """What tells a command the workspace."""
        return ["--work", str(self.workspace.root)] if self.workspace != Workspace(Path("work")) else []

    def __str__(self) -> str:
        recipe = f", recipe {self.recipe}" if self.recipe else ""
        watch = ", watching held-out videos" if self.watch else ""
        clips = "" if self.clips is None else f", clips {self.clips}"
        return f"{self.dataset}, split {self.split}, {self.pool} pooling, seed {self.seed}{recipe}{clips}{watch}"

    def _folder(self, level: Level, variant: str) -> Path:
        return self.workspace.run(self.dataset, self.split, level, self.pool, self.seed, variant)


def run_folders(runs: Path, name: str, *, or_alone: bool = False) -> dict[Level, Path]:
    """Folders of the three levels' scored runs called `name` among the `runs` of a split.

    A name is that of the folders without their level, `mean-seed0-paper`, or the path of such, if they are in another
    place. Raises `ScoreError` if there are none; `or_alone`: the user may also name a level's run alone.
    """
    path = runs / name
    folders: dict[Level, Path] = {level: path.parent / f"{level}-{path.name}" for level in LEVELS}
    missing = [level for level, folder in folders.items() if not (folder / SCORES_FILE).exists()]
    if missing:
        alone = "alone or " if or_alone else ""
        raise ScoreError(
            f"no run is called {name!r} in {path.parent}, {alone}with the levels {', '.join(LEVELS)} before it "
            f"(missing: {', '.join(missing)}); {names_of_runs(runs, name, or_alone=or_alone)}"
        )
    return folders


def names_of_runs(runs: Path, near: str = "", *, or_alone: bool = True) -> str:
    """The names of runs that may be given, and which of them is nearest to the one that was."""
    found = sorted(path.parent.name for path in runs.glob(f"*/{SCORES_FILE}"))
    fused = [name.partition("-")[2] for name in found if name.startswith("high-")]
    fused = [name for name in fused if all(f"{level}-{name}" in found for level in LEVELS)]
    names = [*fused, *(found if or_alone else [])]
    nearest = get_close_matches(near, names, n=1)
    asked = f"did you mean {nearest[0]}? " if nearest else ""
    return f"{asked}in {runs} there are {some(names, 30) or 'none'}"


split_option = click.option(
    "--split", type=click.IntRange(1, 3), default=1, show_default=True, help="Split that the heads were trained on."
)


Choose = Callable[..., RunChoice]
"""What `run_options` gives a command: makes the choice, from the text of `--clips` if it has that option."""


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that choose runs; it gets them as `choose`. Another one of them is `run_option`."""

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
    def with_choice(*, workspace: Workspace, dataset: str | None, **given: Any) -> Any:
        of_runs = {name: given.pop(name) for name in ("pool", "split", "seed", "recipe", "watch")}
        run, source = given.pop("run", None), click.get_current_context().get_parameter_source
        given_here = ParameterSource.COMMANDLINE
        stated = [name for name in ("pool", "seed", "recipe", "watch", "clips") if source(name) is given_here]
        if run is not None and stated:
            raise click.UsageError(f"--run {run} says all of a run but its split; leave out --{', --'.join(stated)}")

        def choose(clips: str | None = None) -> RunChoice:
            name = choose_dataset(workspace, dataset)
            workspace.existing_cache(name)
            chosen = RunChoice(workspace=workspace, dataset=name, clips=clips, **of_runs)
            return chosen if run is None else _called(chosen, run)

        return command(choose=choose, **given)

    return with_choice


run_option = click.option(
    "--run",
    metavar="NAME",
    help="Take the runs of this name, whatever they were trained with: that of their folders without the level. In "
    "place of --pool, --seed, --recipe, --clips and --watch.",
)


def _called(choice: RunChoice, name: str) -> RunChoice:
    """The runs called `name`, of the dataset and split of `choice`. Raises `ScoreError` unless they are trained."""
    folder = run_folders(choice.workspace.runs(choice.dataset, choice.split), name)["high"]
    found = read_config(folder)
    if found is None:
        raise ScoreError(f"{folder} has scores, but no configuration of a run; train it again")
    return replace(choice, run=name, pool=found[0].pool, seed=found[0].seed, watch=found[0].watch)
