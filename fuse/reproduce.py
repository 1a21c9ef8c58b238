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

from cache.common.errors import TrainingError
from cache.common.interrupts import Interrupted
from fuse.report.timing import FILE
from fuse.scores import RunChoice

CHECKOUT: Final = Path(__file__).resolve().parents[1]
"""The repository, which has benchmarks/; an installed package has not."""


@dataclass(frozen=True)
class Step:
    """One command, and what it is for."""

    title: str
    command: tuple[str, ...]
    folder: Path | None = None
    """Working directory; None for the current one."""


def run_all(choice: RunChoice, *, device: str, seeds: int) -> None:
    """Run the steps one after the other; each skips what is done. Raises `TrainingError` if one fails."""
    steps = list(steps_of(choice, device=device, seeds=seeds))
    for number, step in enumerate(steps, 1):
        click.echo(f"\n[{number}/{len(steps)}] {step.title}\n  {shlex.join(('python', *step.command))}")
        started = time.monotonic()
        code = _run(step)
        if code:
            raise TrainingError(
                f"{step.title} ended with exit code {code}, see above; the same command continues there"
            )
        click.echo(f"  {time.monotonic() - started:.0f} s")


def _run(step: Step) -> int:
    """Run the command; returns its exit code. Ctrl-C is passed on to it, and it may save first."""
    with subprocess.Popen([sys.executable, *step.command], cwd=step.folder) as process:
        try:
            return process.wait()
        except Interrupted as interrupted:
            process.send_signal(interrupted.number)
            raise


def steps_of(choice: RunChoice, *, device: str, seeds: int) -> Iterator[Step]:
    """The commands, those first that the report cannot do without. Tables 1 and 2 have `seeds` runs for each cell."""
    root = choice.workspace.root
    common = ("--work", str(root), "--device", device)
    run = ("-m", "train", *common, *choice.options())
    grid = ("--dataset", choice.dataset, "--split", str(choice.split), "--seeds", str(seeds))
    recipe = ("--grid", f"recipe={choice.recipe}") if choice.recipe else ()
    clips = ("--grid", f"clips={choice.clips.replace(',', '+')}") if choice.clips else ()
    sweep = ("-m", "train", "sweep", *common, *grid, *recipe, *clips)
    yield Step("the three levels (Table 3, Figures 3 to 5)", run)
    if not choice.watch:  # else the runs themselves have held-out scores
        yield Step("fusion weights on held-out training videos", (*run, "--holdout"))
    yield Step("Table 2: levels and poolings", (*sweep, "--table", "2"))
    times = root.absolute() / "benchmarks" / FILE
    if (CHECKOUT / "benchmarks" / "figure6.py").exists() and not times.exists():
        command = ("-m", "benchmarks.figure6", "--device", device, "--out", str(times))
        yield Step("Figure 6: time per batch", command, CHECKOUT)
    yield Step("Table 1: hidden units and layers", (*sweep, "--table", "1"))
