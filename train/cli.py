"""`mrrn train`: stage two, cached features to heads and scores."""

import os
import shlex
import time
from collections.abc import Collection
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click

from cache.aggregate import accuracy_text, correct, macro_accuracy
from cache.clips import ClipRule
from cache.common.commands import advised
from cache.common.console import (
    FINISHED_WITH_FAILURES,
    NameChoice,
    StageGroup,
    choose_dataset,
    clips_option,
    dataset_option,
    device_option,
    say,
    say_next,
    say_time,
    work_option,
)
from cache.common.device import check_device, multiplies_bf16
from cache.common.errors import TrainingError
from cache.common.files import write_bytes_durably
from cache.common.progress import about, duration
from cache.common.workspace import Workspace
from cache.fingerprint import LEVELS, Level
from cache.scores import read_scores
from train.config import (
    RunConfig,
    baseline_of,
    is_another,
    read_config,
    state_of,
    with_decided_precision,
    with_recorded_recipe,
)
from train.recipes import KNOBS, LINEAR, POOLS, RECIPES, RETIRED, Pool, with_overrides
from train.split import Split, open_split
from train.sweep.grid import AXES, TABLES, parse_axis
from train.sweep.plan import Plan, make_plan
from train.sweep.table import write_table
from train.sweep.workers import SweepSettings, train_all


class RecipeName(NameChoice):
    """The name of a recipe. One that there is no more is refused with its successor's name."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Returns the name."""
        if value in RETIRED:
            self.fail(f"there is no recipe {value!r} any more; {RETIRED[value]!r} takes its place", param, ctx)
        return super().convert(value, param, ctx)


recipe_option = click.option(
    "--recipe",
    type=RecipeName(sorted(RECIPES)),
    help="How to train; `mrrn recipes` lists them. [default: paper for all of UCF-101 or HMDB-51, else small]",
)


def knob_options(command: Any) -> Any:
    """Adds the options that change one field of the recipe each."""
    for name, knob in reversed(KNOBS.items()):
        if knob.help is None:
            continue
        if knob.kind is ClipRule:
            command = clips_option(command)
            continue
        if isinstance(knob.kind, tuple):
            shown: dict[str, Any] = {"type": NameChoice(knob.kind)}
        elif knob.kind is int:
            shown = {"type": click.IntRange(knob.least), "metavar": "N"}
        else:
            shown = {"type": float, "metavar": "RATE"}
        command = click.option(f"--{knob.axis}", name, help=knob.help, **shown)(command)
    return command


@click.group(cls=StageGroup, invoke_without_command=True)
@work_option
@dataset_option
@device_option
@click.option(
    "--level",
    type=NameChoice([*LEVELS, "all"]),
    default="all",
    show_default=True,
    help="Which features the head sees: ResNet-34's layer2, layer3 or layer4.",
)
@click.option(
    "--pool",
    type=NameChoice(POOLS),
    default="mean",
    show_default=True,
    help="How the logits of the steps become the clip's (equations 8 and 9).",
)
@click.option(
    "--split", type=click.IntRange(1, 3), default=1, show_default=True, help="Official split to train and test on."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of weights, order and views.")
@recipe_option
@knob_options
@click.option(
    "--holdout",
    is_flag=True,
    help="Leave a fifth of the training groups out (the seed says which), score those, and leave the test half alone: "
    "for choosing settings.",
)
@click.option(
    "--watch",
    is_flag=True,
    help="Leave that fifth out of training too, and measure its loss and accuracy after each epoch: for curves.",
)
@click.option("--check", is_flag=True, hidden=True, help="Look at the options alone: make does so before it extracts.")
@click.option("--fresh", is_flag=True, help="Throw away what the run's folder holds and train from the start.")
@click.pass_context
def main(
    context: click.Context,
    workspace: Workspace,
    dataset: str | None,
    device: str,
    level: str,
    pool: Pool,
    split: int,
    seed: int,
    recipe: str | None,
    holdout: bool,
    watch: bool,
    check: bool,
    fresh: bool,
    **overrides: Any,
) -> None:
    """Train a head for each level on cached features, and score the test videos.

    A run lives in WORK/runs/DATASET/splitN/LEVEL-POOL-seedN[-VARIANT]/: config.json, checkpoint.safetensors,
    metrics.jsonl, tensorboard/, scores.npz. A finished run is not done again; an interrupted one continues to the same
    bits. No test video is looked at before the final scoring. Beside each head `linear` is trained in seconds, logistic
    regression on each video's mean feature: what the head has to beat.

    \b
    Examples:
      mrrn train                              all levels of the dataset extracted last
      mrrn train --dataset ucf101 --level mid --pool max
      mrrn train --cell lstm --hidden 512     a variant beside the usual run
      torchrun --nproc-per-node 4 -m train         each batch shared by four GPUs
    """
    if int(os.environ.get("RANK", "0")) > 0:
        # One of several processes started by torchrun: the first one speaks for all.
        nowhere = context.with_resource(open(os.devnull, "w"))  # noqa: PTH123, SIM115
        context.with_resource(redirect_stdout(nowhere))
    if check or context.invoked_subcommand is not None:
        return
    if "," in device:
        numbers = ",".join(name.removeprefix("cuda:") for name in device.split(","))
        raise TrainingError(
            f"device {device!r}: one process trains on one device. On several GPUs, each batch is shared by as many "
            f"processes: `CUDA_VISIBLE_DEVICES={numbers} torchrun --nproc-per-node {len(device.split(','))} -m train "
            "--device cuda`, with the same other options (docs/training.md)"
        )
    opened = open_split(workspace, choose_dataset(workspace, dataset), split)
    usual, why = opened.usual_recipe()
    chosen = with_overrides(opened.recipes[recipe] if recipe else usual, **overrides)
    say(f"recipe {chosen.name} ({'asked for' if recipe else why}; RECIPE= or --recipe chooses another)")
    if level == "all":
        opened.cache.require_levels()
    levels: tuple[Level, ...] = LEVELS if level == "all" else (level,)  # type: ignore[assignment]
    configs = [
        opened.config(level=each, pool=pool, seed=seed, recipe=chosen, usual=usual, holdout=holdout, watch=watch)
        for each in levels
    ]
    if not fresh and overrides["clips"] is None:
        configs = [with_recorded_recipe(config, workspace, asked=recipe is not None) for config in configs]
    apart = dict.fromkeys(("summary", "clips", "precision"))
    if configs[0].recipe.to_json() | apart != chosen.to_json() | apart:
        say(f"recipe {configs[0].recipe.name} as it was when these runs were begun; --fresh takes today's")
    say(f"clips: {configs[0].clips.words}")
    if chosen.cell != "linear":
        # Each level's baseline first, so that the line about its head can say whether it was beaten.
        configs = [run for config in configs for run in (baseline_of(config), config)]
    waiting = []
    for config in configs:
        if fresh or state_of(config.folder(workspace), config) != "finished":
            waiting.append(config)
        elif config.recipe.cell == chosen.cell:
            path = config.folder(workspace) / config.scores_file
            say(f"{_title(config)}: done already, {path}")
    if waiting:
        _run_all(opened, waiting, workspace, device, fresh)
    if level == "all" and not holdout:
        say_next(advised("fuse", workspace, dataset=opened.dataset.name), "train")


@main.command()
def recipes() -> None:
    """List the recipes and what each changes."""
    for recipe in RECIPES.values():
        say(f"{recipe.name}\n    {recipe.summary}")


@main.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--to", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path), help="[default: RUN/head.onnx]")
def export(run: Path, to: Path | None) -> None:
    """Write the head of a finished run as an ONNX file.

    RUN is the run's folder. The file takes `features`, float32 [steps of a clip, clips, channels], and gives `logits`
    [clips, classes]; its metadata names level, classes, clips and what the features have to be made with.

    \b
    Example:
      mrrn train export work/runs/ucf101/split1/high-mean-seed0
    """
    from train.checkpoint import load_head
    from train.export import to_onnx

    head, config = load_head(run)
    path = to or run / "head.onnx"
    write_bytes_durably(path, to_onnx(head, config))
    say(f"{config.level}-{config.pool} of {config.dataset}, {len(config.classes)} classes: {path}")


@main.command()
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
    chosen = {**(TABLES[table] if table else {}), **dict(parse_axis(text) for text in axes)}
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
    click.echo(f"\n{shown}\n\ntable: {folder / 'table.md'}")
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


def _run_all(split: Split, configs: list[RunConfig], workspace: Workspace, device: str, fresh: bool) -> None:
    check_device(device)  # before torch is imported
    from train.distributed import choose_device, join
    from train.duration import expected_seconds
    from train.run import run

    group, where = join(choose_device(device))
    noun, time_needed = split.dataset.noun, about(expected_seconds(split, configs, where))
    say(
        f"train {', '.join(map(_title, configs))} on {where}: {configs[0].videos['training']:,} {noun} "
        f"of {split.dataset.name}, split {split.number}, seed {configs[0].seed}, backbone weights {configs[0].weights}"
        f"{_products(configs[-1], workspace, str(where), fresh)}; {time_needed}"
    )
    for note in split.dataset.one_sided_notes(split.number):
        say(note)
    if configs[0].watch:
        say(
            f"watched after each epoch, not learned from: {configs[0].videos['watched']:,} training {noun}, a fifth of "
            "each class's groups; nothing is stopped or chosen by them"
        )
    click.echo(f"curves: tensorboard --logdir {shlex.quote(str(configs[0].folder(workspace).parent))}")
    left_out, started = "", time.monotonic()
    for config in configs:
        scores = run(split, config, workspace, where, fresh=fresh, group=group)
        if not group.leads:
            continue
        if scores is None:
            say(f"{_title(config)}: another process finished it meanwhile")
            continue
        _, probabilities, labels = scores.videos()
        right_N = correct(probabilities, labels)
        right, total, macro = int(right_N.sum()), len(labels), macro_accuracy(right_N, labels, len(config.classes))
        half = "held-out" if config.holdout else "test"
        classes_alike = "" if f"{macro:.3f}" == f"{right / total:.3f}" else f"; macro {100 * macro:.1f} %"
        say(
            f"{_title(config)}: {right:,} of {total:,} {half} {noun} right "
            f"({accuracy_text(right, total)}{classes_alike}{_against_baseline(config, right, workspace)})"
        )
        left_out = config.clips.note(scores.run["unread_frames"], scores.run["frames"], f"the {half} {noun}'")
    if left_out:
        say(f"! {left_out}")
    say_time(f"{len(configs)} runs in {duration(time.monotonic() - started)}: {configs[0].folder(workspace).parent}")


def _products(config: RunConfig, workspace: Workspace, device: str, fresh: bool) -> str:
    """In which precision a head's products are computed, and why if the device decides that; empty for `linear`."""
    folder = config.folder(workspace)
    if config.recipe.cell == "linear":
        return ""
    if config.recipe.precision != "auto" or (not fresh and read_config(folder)):
        return f"; products in {with_decided_precision(config, folder, device).recipe.precision}"
    name = "GPU" if device.startswith("cuda") else "processor"
    if multiplies_bf16(device):
        return f"; products in bf16, which this {name} multiplies"
    return f"; products in fp32: this {name} does not multiply bf16"


def _title(config: RunConfig) -> str:
    return f"{config.level}-{LINEAR if config.recipe.cell == 'linear' else config.pool}"


def _against_baseline(config: RunConfig, right: int, workspace: Workspace) -> str:
    """How many videos the baseline has right, and whether that is as many; empty for the baseline itself."""
    if config.recipe.cell == "linear":
        return ""
    baseline = baseline_of(config)
    _, probabilities, labels = read_scores(baseline.folder(workspace) / baseline.scores_file).videos()
    theirs = int(correct(probabilities, labels).sum())
    return f"; linear has {theirs:,}: {'no better than that' if right <= theirs else 'better'}"
