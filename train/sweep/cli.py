"""`python -m train sweep`: a grid of settings, several seeds and splits, one table."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from cache.common.console import (
    FINISHED_WITH_FAILURES,
    choose_dataset,
    dataset_option,
    device_option,
    progress,
    work_option,
)
from cache.common.device import available_bytes
from cache.common.errors import TrainingError
from cache.common.files import write_bytes_durably
from cache.common.workspace import Workspace
from cache.fingerprint import CHANNELS, LEVELS
from train.config import state_of
from train.split import Split, open_split
from train.sweep.grid import AXES, TABLES, parse_axis, settings
from train.sweep.plan import Plan, cells, to_json, to_markdown
from train.sweep.workers import Surroundings, Task, work_off


@click.command()
@work_option
@dataset_option
@device_option
@click.option(
    "--table",
    type=click.Choice(list(TABLES)),
    help="The paper's grid: 1 hidden x layers, 2 levels x poolings, fusion levels and how they are fused.",
)
@click.option(
    "--grid",
    "axes",
    multiple=True,
    metavar="AXIS=A,B",
    help=f"Vary an axis: {', '.join(AXES)}. Several make a grid; one value alone is held fixed; goes with --table too.",
)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Seeds 0 to N-1 for each setting.")
@click.option("--split", "splits", type=click.IntRange(1, 3), multiple=True, help="Several may be given. [default: 1]")
@click.option(
    "--holdout",
    is_flag=True,
    help="Score held-out training videos, another fifth for each seed, not the test half: to choose settings by.",
)
@click.option("--jobs", type=click.IntRange(1), metavar="N", help="Runs at once. [default: one a core; one on a GPU]")
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
    name: str | None,
    page: str | None,
) -> None:
    """Train every combination of a grid and write one table: mean and standard deviation over the seeds.

    Runs that are done are not done again, so a sweep that was ended continues by the same command. The table goes to
    WORK/sweeps/DATASET/NAME/: table.md and results.json. Where a grid has all three levels, the levels are
    fused too. Accuracy is the share of test videos that are classified right.

    \b
    Examples:
      python -m train sweep --table 2 --seeds 5
      python -m train sweep --grid cell=sru,lstm,gru,mean --grid pool=mean,max
      python -m train sweep --grid lr=1e-4,1e-3 --holdout         choose by held-out training videos
    """
    if not table and not axes:
        raise click.UsageError(
            "say what to vary: --table 1|2|fusion, or --grid AXIS=VALUE,VALUE (several may be given)"
        )
    chosen = {**(TABLES[table] if table else {}), **dict(parse_axis(text) for text in axes)}
    opened = {number: open_split(workspace, choose_dataset(workspace, dataset), number) for number in splits or (1,)}
    plan = _plan(opened, chosen, seeds, holdout=holdout, search_fusion=table == "fusion" and not holdout)
    failed = _train(plan, workspace, device, jobs)
    if failed:
        click.echo(f"{len(failed)} runs failed; there is no table before all are done:", err=True)
        for what in failed:
            click.echo(f"  {what}", err=True)
        raise click.exceptions.Exit(FINISHED_WITH_FAILURES)
    default_name = {"1": "table1", "2": "table2", "fusion": "fusion", None: "grid"}[table]
    markdown = _write(plan, workspace, next(iter(opened.values())), name or default_name)
    if page:
        write_bytes_durably(Path(page), f"# Results\n\n{markdown}".encode())


def _plan(opened: dict[int, Split], axes: dict[str, Any], seeds: int, *, holdout: bool, search_fusion: bool) -> Plan:
    usual = {number: split.usual_recipe()[0] for number, split in opened.items()}
    names = {recipe.name for recipe in usual.values()}
    if len(names) > 1 and "recipe" not in axes:
        raise TrainingError(f"the splits' usual recipes differ ({', '.join(sorted(names))}): add --grid recipe=NAME")
    return Plan(
        splits=opened,
        settings=tuple(settings(axes, next(iter(usual.values())))),
        seeds=tuple(range(seeds)),
        holdout=holdout,
        search_fusion=search_fusion,
        usual=usual,
    )


def _train(plan: Plan, workspace: Workspace, device: str, jobs: int | None) -> list[str]:
    """Do the runs that are not done; what failed and why."""
    configs = plan.configs()
    waiting = [config for config in configs if state_of(config.folder(workspace), config) != "finished"]
    click.echo(f"{len(configs)} runs, {len(configs) - len(waiting)} of them done already")
    if not waiting:
        return []
    jobs = min(jobs or _default_jobs(plan, device), len(waiting))
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    log = workspace.root / "sweeps" / "workers.log"
    surroundings = Surroundings(workspace=workspace, device=device, threads=threads, log=log)
    click.echo(f"{jobs} at once, {threads} CPU threads each; what they print goes to {log}")
    tasks = [Task(number=number, config=config) for number, config in enumerate(waiting)]
    return _follow(tasks, surroundings, jobs)


def _follow(tasks: Sequence[Task], surroundings: Surroundings, jobs: int) -> list[str]:
    shares = dict.fromkeys(range(len(tasks)), 0.0)
    failed = []
    with progress("sweep", len(tasks), "runs") as line:
        for event in work_off(tasks, surroundings, jobs):
            shares[event.number] = 1.0 if event.ended else event.share
            folder = tasks[event.number].config.folder(surroundings.workspace)
            if event.error:
                failed.append(f"{folder}: {event.error}")
            line.update(sum(shares.values()), f"{folder.name}: {event.text or 'done'}")
    return failed


def _default_jobs(plan: Plan, device: str) -> int:
    """One run a core on the CPU, where small products do not use several, as far as memory allows; one on a GPU."""
    if device.startswith("cuda") or (device == "auto" and _has_gpu()):
        return 1
    largest = 0
    for split in plan.splits.values():
        frames = sum(split.cache.num_frames(video.id) for video in split.training)
        largest = max(largest, frames * len(split.cache.views) * max(CHANNELS[level] for level in LEVELS) * 2)
    return max(1, min(len(os.sched_getaffinity(0)), int(available_bytes() / 2 / (largest + (1 << 30)))))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _write(plan: Plan, workspace: Workspace, split: Split, name: str) -> str:
    folder = workspace.sweep(split.dataset.name, name)
    what = "held-out training videos" if plan.holdout else "test videos"
    recipes = sorted({setting.recipe.name for setting in plan.settings})
    splits, seeds = (", ".join(map(str, numbers)) for numbers in (plan.splits, plan.seeds))
    notes = [
        f"{split.dataset.name}, split {splits}, seeds {seeds}: percent of {what} classified right; mean ± sample "
        "standard deviation over seeds",
        f"recipe {', '.join(recipes)}; backbone weights {split.cache.fingerprint.identity.get('weights')}",
        f"made by `{_command(split.dataset.name)}`",
    ]
    if plan.holdout:
        notes.append("each seed holds out another fifth of the groups; in brackets the mean -ln p of the right class")
    if split.dataset.subset:
        notes.append("the dataset is a subset of the published one")
    table = cells(plan, workspace)
    markdown = to_markdown(table, notes, losses=plan.holdout)
    write_bytes_durably(folder / "table.md", markdown.encode())
    write_bytes_durably(folder / "results.json", to_json(table, plan, notes).encode())
    click.echo(f"\n{markdown}\ntable: {folder / 'table.md'}")
    return markdown


def _command(dataset: str) -> str:
    """The command line that made the table, the dataset named."""
    context = click.get_current_context()
    parts = ["python", "-m", "train", "sweep", "--dataset", dataset]
    values = context.params
    for option, value in (("--table", values["table"]), ("--seeds", values["seeds"])):
        parts += [option, str(value)] if value else []
    for option, several in (("--grid", values["axes"]), ("--split", values["splits"])):
        for value in several:
            parts += [option, str(value)]
    return shlex.join([*parts, "--holdout"] if values["holdout"] else parts)
