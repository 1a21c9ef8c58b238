"""`mrrn train`: stage two, cached features to heads and scores."""

import os
import shlex
import time
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from cache.aggregate import accuracy_text, correct, fraction, macro_accuracy
from cache.clips import ClipRule
from cache.common.commands import advised
from cache.common.console import (
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
from cache.comparison import compare
from cache.fingerprint import LEVELS, Level
from cache.scores import ScoreTable, read_scores
from train.config import (
    RunConfig,
    baseline_of,
    read_config,
    state_of,
    with_decided_precision,
    with_recorded_recipe,
)
from train.recipes import KNOBS, LINEAR, POOLS, RECIPES, RETIRED, Pool, check_pool, with_overrides
from train.split import Split, open_split
from train.sweep.cli import sweep


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
    check_pool(chosen.cell, pool)
    if chosen.cell == LINEAR:
        _check_linear(overrides)
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
        which = {"split": str(split), "run": configs[-1].name}
        unusual = {name: value for name, value in which.items() if value not in ("1", "mean-seed0")}
        say_next(advised("fuse", workspace, dataset=opened.dataset.name, **unusual), "train")


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


main.add_command(sweep)


def _check_linear(overrides: Mapping[str, Any]) -> None:
    """Raises `TrainingError` for an option that the recipe `linear` has no use for."""
    if unused := [name for name, value in overrides.items() if value is not None and name not in ("cell", "clips")]:
        names = " and no ".join(f"--{KNOBS[name].axis}" for name in unused)
        raise TrainingError(
            f"linear has no {names}: it is logistic regression on each video's mean feature, standardised, and takes "
            "--clips alone"
        )


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
    held_out = configs[0].holdout or configs[0].watch
    for note in [
        *([] if configs[0].holdout else split.dataset.one_sided_notes(split.number)),
        *(split.held_out_notes(configs[0].seed) if held_out else []),
    ]:
        say(note)
    if configs[0].watch and configs[-1].recipe.cell != LINEAR:
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
        right_N, macro = _right(scores)
        half = "held-out" if config.holdout else "test"
        right, total = int(right_N.sum()), len(right_N)
        say(
            f"{_title(config)}: {right:,} of {total:,} {half} {noun} right "
            f"({accuracy_text(right, total)}{macro}{_against_baseline(config, right_N, workspace)})"
        )
        left_out = config.clips.note(scores.run["unread_frames"], scores.run["frames"], f"the {half} {noun}'")
    if left_out:
        say(f"! {left_out}")
    runs = f"{len(configs)} run{'s' * (len(configs) > 1)}"
    say_time(f"{runs} in {duration(time.monotonic() - started)}: {configs[0].folder(workspace).parent}")


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


def _right(scores: ScoreTable) -> tuple[NDArray[np.bool_], str]:
    """Which videos are right, in the order of their ids; and the macro accuracy in words if it is another one."""
    _, probabilities, labels = scores.videos()
    right_N = correct(probabilities, labels)
    macro = f"{100 * macro_accuracy(right_N, labels, len(scores.classes)):.1f}"
    return right_N, "" if macro == f"{100 * fraction(right_N):.1f}" else f"; macro {macro} %"


def _against_baseline(config: RunConfig, right_N: NDArray[np.bool_], workspace: Workspace) -> str:
    """How many videos the baseline has right, and what that says of the head; empty for the baseline itself."""
    if config.recipe.cell == "linear":
        return ""
    baseline = baseline_of(config)
    theirs_N, macro = _right(read_scores(baseline.folder(workspace) / baseline.scores_file))
    theirs = f"{int(theirs_N.sum()):,}{macro.replace(';', ',')}"
    return f"; against linear, which has {theirs}: {compare(right_N, theirs_N).text}"
