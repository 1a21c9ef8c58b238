"""`mrrn sweep`: a grid of runs and its table."""

import os
import shlex
from collections.abc import Collection
from pathlib import Path

import click

from cache.common.console import (
    FINISHED_WITH_FAILURES,
    NameChoice,
    choose_dataset,
    dataset_option,
    device_option,
    say,
    work_option,
)
from cache.common.device import check_device
from cache.common.files import write_bytes_durably
from cache.common.progress import about
from cache.common.text import some
from cache.common.workspace import Workspace
from cache.fingerprint import LEVELS
from train.config import is_another, state_of, with_recorded_recipe
from train.split import open_split
from train.sweep.grid import AXES, TABLES, parse_axis
from train.sweep.plan import Plan, make_plan
from train.sweep.table import write_table
from train.sweep.workers import SweepSettings, train_all


@click.command()
@work_option
@dataset_option
@device_option
@click.option(
    "--table",
    type=NameChoice(list(TABLES)),
    help="The paper's grid: 1 hidden x layers, 2 levels x poolings, fusion levels and how they are fused.",
)
@click.option(
    "--grid",
    "axes",
    multiple=True,
    metavar="AXIS=A,B",
    help=f"Vary an axis: {', '.join(AXES)}. Several make a grid; one value alone is held fixed; goes with --table too. "
    "The parts of one clip rule are joined by +: clips=keep=first,keep=even+max=40.",
)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Seeds 0 to N-1 for each setting.")
@click.option("--split", "splits", type=click.IntRange(1, 3), multiple=True, help="Several may be given. [default: 1]")
@click.option(
    "--holdout",
    is_flag=True,
    help="Score held-out training videos, another fifth for each seed, not the test half: to choose settings by.",
)
@click.option("--jobs", type=click.IntRange(1), metavar="N", help="Runs at once. [default: one a core; one on a GPU]")
@click.option("--fresh", is_flag=True, help="Replace runs that are of other settings or of another state of the cache.")
@click.option("--name", metavar="NAME", help="Folder of the table. [default: table1, table2, fusion or grid]")
@click.option("--page", metavar="FILE", type=click.Path(dir_okay=False), help="Also write the table as a page, here.")
def sweep(
    workspace: Workspace,
    dataset: str | None,
    device: str,
    table: str | None,
    axes: tuple[str, ...],
    seeds: int,
    splits: tuple[int, ...],
    holdout: bool,
    jobs: int | None,
    fresh: bool,
    name: str | None,
    page: str | None,
) -> None:
    """Train every combination of a grid and write one table: mean and standard deviation over the seeds.

    Runs that are done are not done again, so a sweep that was ended continues by the same command. The table goes to
    WORK/sweeps/DATASET/NAME/: table.md and results.json. Where a grid has all three levels, the levels are
    fused too. Accuracy is the share of test videos that are classified right.

    \b
    Examples:
      mrrn sweep --table 2 --seeds 5
      mrrn sweep --grid cell=sru,lstm,gru,mean --grid pool=mean,max
      mrrn sweep --grid lr=1e-4,1e-3 --holdout         choose by held-out training videos
    """
    if not table and not axes:
        raise click.UsageError(
            "say what to vary: --table 1|2|fusion, or --grid AXIS=VALUE,VALUE (several may be given)"
        )
    given = [parse_axis(text) for text in axes]
    if twice := {name for name, _ in given if [other for other, _ in given].count(name) > 1}:
        raise click.UsageError(f"--grid {min(twice)}=… was given twice; its values go into one, with commas between")
    chosen = {**(TABLES[table] if table else {}), **dict(given)}
    opened = {number: open_split(workspace, choose_dataset(workspace, dataset), number) for number in splits or (1,)}
    default_name = {"1": "table1", "2": "table2", "fusion": "fusion", None: "grid"}[table]
    folder = workspace.sweep(next(iter(opened.values())).dataset.name, name or default_name)
    plan = make_plan(opened, chosen, seeds, holdout=holdout, search_fusion=table == "fusion" and not holdout)
    failed = _train_missing(plan, workspace, device, jobs, chosen, fresh=fresh)
    if failed:
        say(f"{len(failed)} runs failed; there is no table before all are done:", err=True)
        for each in failed:
            say(f"  {each}", err=True)
        raise click.exceptions.Exit(FINISHED_WITH_FAILURES)
    markdown, shown = write_table(plan, workspace, folder, _sweep_command(plan.dataset))
    say(f"\n{shown}\n\ntable: {folder / 'table.md'}")
    if not holdout and {point.level for point in plan.points} == set(LEVELS):
        first = next(iter(plan.splits)), plan.seeds[0]
        names = dict.fromkeys(plan.config(point, *first, holdout=False).name for point in plan.points)
        say(f"runs of split {first[0]}, for `mrrn compare` and `mrrn fuse --run`: {some([*names], 12)}")
    if page:
        write_bytes_durably(Path(page), f"# Results\n\n{markdown}".encode())


def _train_missing(
    plan: Plan, workspace: Workspace, device: str, jobs: int | None, chosen: Collection[str], *, fresh: bool
) -> list[str]:
    """Train the runs that are not finished, of a grid of the `chosen` axes. Returns which failed, and why.

    `fresh`: a folder that holds another run than the one asked for is emptied first.
    """
    configs = plan.configs()
    if not fresh and "clips" not in chosen:
        configs = [with_recorded_recipe(config, workspace, asked="recipe" in chosen) for config in configs]
    stale = [config for config in configs if fresh and is_another(config.folder(workspace), config)]
    missing = [
        config for config in configs if config in stale or state_of(config.folder(workspace), config) != "finished"
    ]
    replaced = f", {len(stale)} others are replaced" if stale else ""
    say(f"{len(configs)} runs, {len(configs) - len(missing)} of them done already{replaced}")
    if not missing:
        return []
    check_device(device)
    from train.distributed import choose_device
    from train.duration import expected_seconds

    jobs = min(jobs or plan.default_jobs(device), len(missing))
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    log = workspace.root / "sweeps" / "workers.log"
    seconds = sum(
        expected_seconds(split, [config for config in missing if config.split == number], choose_device(device))
        for number, split in plan.splits.items()
    )
    say(f"{about(seconds)}; {jobs} at once, {threads} CPU threads each; what they print goes to {log}")
    settings = SweepSettings(workspace=workspace, device=device, threads=threads, log=log, fresh=fresh)
    return train_all(missing, settings, jobs)


def _sweep_command(dataset: str) -> str:
    """The command line that made the table, with the dataset's name."""
    values = click.get_current_context().params
    given = [("--dataset", dataset), ("--table", values["table"]), ("--seeds", values["seeds"])]
    given += [("--grid", axis) for axis in values["axes"]] + [("--split", number) for number in values["splits"]]
    options = [str(part) for option, value in given if value for part in (option, value)]
    return shlex.join(["mrrn", "sweep", *options, *["--holdout"] * values["holdout"]])
