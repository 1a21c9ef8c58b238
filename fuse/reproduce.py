"""All of the paper's tables and figures in one go: the commands of other stages that the report needs, in order."""

import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from cache.common.console import say
from cache.common.errors import TrainingError
from cache.common.interrupts import Interrupted
from cache.common.progress import about, duration
from fuse.choice import RunChoice
from fuse.report.timing import timing_file
from train.distributed import choose_device
from train.duration import expected_seconds
from train.split import open_split
from train.sweep.grid import TABLES, parse_axis
from train.sweep.plan import make_plan

CHECKOUT: Final = Path(__file__).resolve().parents[1]
"""The repository, which has benchmarks/; an installed package has not."""


DEMO_GRID: Final = ("--grid", "hidden=32,64,128", "--grid", "layers=1,2,3")
"""Table 1 of the demo, whose paper's sizes would take a quarter of an hour."""

DEMO_TIMING: Final = ("--batches", "5", "--seconds", "3", "--clips", "1")

START_SECONDS: Final = 5.0
"""Which a command takes to begin."""


@dataclass(frozen=True)
class Step:
    """One command, and what it is for."""

    title: str
    command: tuple[str, ...]
    folder: Path | None = None
    """Working directory; None for the current one."""
    seconds: float = 0.0
    """About how long it takes if none of it is done yet."""


def run_all(choice: RunChoice, *, device: str, seeds: int, fresh: bool = False) -> None:
    """Run the steps one after the other; each skips what is done. Raises `TrainingError` if one fails."""
    steps = list(steps_of(choice, device=device, seeds=seeds, fresh=fresh))
    total = about(sum(step.seconds for step in steps))
    click.echo(f"{len(steps)} steps, {total} if nothing of them is done yet:")
    for number, step in enumerate(steps, 1):
        click.echo(f"  {number} {step.title:<56} {about(step.seconds)}")
    if choice.dataset == "demo":
        say("  the demo has smaller grids in Table 1 and batches of one clip in Figure 6, not the paper's")
    for number, step in enumerate(steps, 1):
        click.echo(f"\n[{number}/{len(steps)}] {step.title}")
        started = time.monotonic()
        code = _run(step)
        if code:
            raise TrainingError(
                f"{step.title} ended with exit code {code}, see above; the same command continues there. This step "
                f"alone is: {shlex.join(('python', *step.command))}"
            )
        click.echo(f"step {number} took {duration(time.monotonic() - started)}")


def _run(step: Step) -> int:
    """Run the command; returns its exit code. Ctrl-C is passed on to it, and it may save first."""
    with subprocess.Popen([sys.executable, *step.command], cwd=step.folder) as process:
        try:
            return process.wait()
        except Interrupted as interrupted:
            process.send_signal(interrupted.number)
            raise


def steps_of(choice: RunChoice, *, device: str, seeds: int, fresh: bool = False) -> Iterator[Step]:
    """The commands, those first that the report cannot do without. Tables 1 and 2 have `seeds` runs for each cell."""
    demo = choice.dataset == "demo"
    again = ("--fresh",) if fresh else ()
    work = ("--work", str(choice.workspace.root), "--device", device)
    run = ("-m", "train", *choice.options(), "--device", device, *again)
    grid = ("--dataset", choice.dataset, "--split", str(choice.split), "--seeds", str(seeds))
    recipe = ("--grid", f"recipe={choice.recipe}") if choice.recipe else ()
    clips = ("--grid", f"clips={choice.clips.replace(',', '+')}") if choice.clips else ()
    sweep = ("-m", "train", "sweep", *work, *grid, *recipe, *clips, *again)
    seconds = _expected(choice, device, seeds)
    yield Step("the three levels (Table 3, Figures 3 to 5)", run, seconds=seconds["levels"])
    if not choice.watch:  # else the runs themselves have held-out scores
        yield Step("fusion weights on held-out training videos", (*run, "--holdout"), seconds=0.8 * seconds["levels"])
    yield Step("Table 2: levels and poolings", (*sweep, "--table", "2"), seconds=seconds["2"])
    times = timing_file(choice.workspace, choice.dataset).absolute()
    if (CHECKOUT / "benchmarks" / "figure6.py").exists() and not times.exists():
        command = ("-m", "benchmarks.figure6", "--device", device, "--out", str(times), *(DEMO_TIMING if demo else ()))
        yield Step("Figure 6: time per batch", command, CHECKOUT, seconds=100 if demo else 600)
    table_1 = (*sweep, "--table", "1", *(DEMO_GRID if demo else ()))
    yield Step("Table 1: hidden units and layers", table_1, seconds=seconds["1"])


def _expected(choice: RunChoice, device: str, seeds: int) -> dict[str, float]:
    """Seconds that the three levels take (levels), and those runs of Tables 1 and 2 (1, 2) that are not among them."""
    opened = open_split(choice.workspace, choice.dataset, choice.split)
    opened.cache.require_levels()
    given = {"recipe": (choice.recipe,)} if choice.recipe else {}
    grids = {"levels": {}, "2": TABLES["2"], "1": TABLES["1"]}
    if choice.dataset == "demo":
        grids["1"] = {**TABLES["1"], **dict(parse_axis(text) for text in DEMO_GRID[1::2])}
    found: dict[str, float] = {}
    known: set[Path] = set()
    for name, grid in grids.items():
        count = 1 if name == "levels" else seeds
        plan = make_plan({choice.split: opened}, {**grid, **given}, count, holdout=False, search_fusion=False)
        runs = {config.folder(choice.workspace): config for config in plan.configs()}
        new = [config for folder, config in runs.items() if folder not in known]
        known |= runs.keys()
        found[name] = expected_seconds(opened, new, choose_device(device)) + START_SECONDS
    return found
