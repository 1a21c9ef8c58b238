"""Training a head at HMDB-51's real size, against a plain loop: seconds per epoch and per run, memory.

    python -m benchmarks.train --counts hmdb51_frames.csv            # on a GPU if there is one; on a CPU, minutes
    python -m benchmarks.train --counts hmdb51_frames.csv --recipe paper-24fps --level high --steps 40

`--counts` is a CSV with the columns video, class, split1 and frames_decoded_estimate. The features are random numbers
of one view, in a cache below --scratch (1.2 GB) that later calls use again. Contestants:

    ours                     features on the device, clips gathered by index, the recipe's head; a CUDA graph on a GPU
    matrix products          those of that head alone: forward, and backward for weights and inputs
    our head, DataLoader     the same head and fused Adam, fed by a DataLoader with two workers that read HDF5
    nn.LSTM, DataLoader      the plain loop: nn.LSTM of the same size, HDF5 with a dataset per video, Adam, loss.item()

They take turns of --turn steps. Seconds per epoch are the median time of a step times the steps of an epoch, because
all steps are alike and an epoch takes minutes on a CPU. Before anything is timed, the DataLoader has to give the same
clips as ours, bit for bit.
"""

import resource
import statistics
import time
from datetime import UTC, datetime
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.plain import PlainClips, PlainLSTM, TakeSteps, batches, plain_loop, write_plain_file
from benchmarks.random_features import NAME, make_cache_of_size
from benchmarks.turns import machine, matrix_products, take_turns
from cache.common.device import multiplies_bf16
from cache.common.files import write_json_durably
from cache.common.workspace import Workspace
from cache.fingerprint import LEVELS, Level
from train.checkpoint import new_head
from train.clips import Bank, load_bank
from train.config import RunConfig
from train.distributed import choose_device
from train.heads import Head
from train.recipes import PRECISIONS, RECIPES, Precision, with_overrides
from train.split import Split, open_split
from train.trainer import Trainer

PRODUCTS = "matrix products"
OURS = "ours"
WARM_UP_TURNS = 1


def our_loop(trainer: Trainer) -> TakeSteps:
    """Steps of our trainer on the first epoch's batches, again and again; the sums are read after each turn."""
    batch = trainer.recipe.batch
    clip_N, view_N = (each.to(trainer.device) for each in trainer._order())
    starts = cycle(range(0, len(clip_N) - batch + 1, batch))

    def take(steps: int) -> None:
        for at in islice(starts, steps):
            trainer.take_step(clip_N[at : at + batch], view_N[at : at + batch], batch)
        trainer.sums.read(trainer.group)

    return take


def products(head: Head, steps_in_clip: int, batch: int, device: torch.device, precision: Precision) -> TakeSteps:
    """Steps with the head's matrix products alone: forward, and backward for weights and, except features, inputs."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    weights = [each.detach().flatten(0, -2) for each in head.parameters() if each.dim() > 1 and each.shape[-1] > 2]
    step = matrix_products(weights, steps_in_clip * batch, device, dtype)

    def take(steps: int) -> None:
        for _ in range(steps):
            step()

    return take


def check(bank: Bank, clips: PlainClips) -> None:
    """Raises AssertionError unless the DataLoader gives the clips that the bank gathers."""
    for clip in (0, len(bank) // 2, len(bank) - 1):
        device = bank.label_N.device
        ours_TC = bank.gather(torch.tensor([clip], device=device), torch.tensor([0], device=device))[:, 0].cpu()
        theirs_TC, label = clips[clip]
        assert torch.equal(ours_TC, theirs_TC), f"clip {clip} differs between the bank and the DataLoader"
        assert label == int(bank.label_N[clip])
    clips.file = None


def measure(
    split: Split, config: RunConfig, device: torch.device, scratch: Path, turns: int, turn: int
) -> dict[str, Any]:
    """Figures of one level."""
    started = time.perf_counter()
    bank = load_bank(split.cache, config.level, split.training, config.clips, device)
    assert isinstance(bank, Bank), "the features do not fit into this device's memory"
    load_seconds = time.perf_counter() - started
    plain_file = scratch / f"plain-{config.level}.h5"
    write_plain_file(plain_file, split, config.level)
    clips = PlainClips(plain_file, bank)
    check(bank, clips)
    torch.manual_seed(0)
    batch = config.recipe.batch
    trainer = Trainer(new_head(config).to(device), bank, config.recipe, config.level, 0)
    plain = partial(plain_loop, precision=config.recipe.precision)
    ours_plainly = plain(new_head(config).to(device), batches(clips, batch, device), fused=True)
    contestants: dict[str, TakeSteps] = {
        PRODUCTS: products(trainer.head, config.clips.length, batch, device, config.recipe.precision),
        OURS: our_loop(trainer),
        "our head, DataLoader": ours_plainly,
        "nn.LSTM, DataLoader": plain(PlainLSTM(config).to(device), batches(clips, batch, device), fused=False),
    }
    in_turn = {name: partial(take, turn) for name, take in contestants.items()}
    taken = take_turns(in_turn, device, turns, warm_up=WARM_UP_TURNS)
    times = {name: [each / turn for each in mine] for name, mine in taken.items()}
    rows = [
        {
            "name": name,
            "milliseconds": 1000 * statistics.median(mine),
            "epoch_seconds": statistics.median(mine) * trainer.steps_per_epoch,
            "run_seconds": statistics.median(mine) * trainer.steps_per_epoch * trainer.epochs,
            "x_products": statistics.median(a / b for a, b in zip(mine, times[PRODUCTS], strict=True)),
        }
        for name, mine in times.items()
    ]
    outside = 1 - statistics.median(b / a for a, b in zip(times[OURS], times[PRODUCTS], strict=True))
    return {
        "level": config.level,
        "clips": len(bank),
        "steps_per_epoch": trainer.steps_per_epoch,
        "epochs": trainer.epochs,
        "load_seconds": load_seconds,
        "features_MB": bank.features_VFC.nbytes / 1e6,
        "peak_MB": peak_bytes(device) / 1e6,
        "outside_products": outside,
        "rows": rows,
    }


def peak_bytes(device: torch.device) -> int:
    """Peak memory so far, on the GPU or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def show(table: dict[str, Any]) -> None:
    """The table as text."""
    click.echo(
        f"\n{table['level']}: {table['clips']:,} clips, {table['steps_per_epoch']:,} steps an epoch, {table['epochs']} "
        f"epochs; loaded in {table['load_seconds']:.1f} s; features {table['features_MB']:,.0f} MB, peak memory "
        f"{table['peak_MB']:,.0f} MB; {table['outside_products']:.1%} of our step is outside matrix products"
    )
    click.echo(f"  {'':22} {'ms a step':>10} {'s an epoch':>11} {'s a run':>10} {'x products':>11}")
    for row in table["rows"]:
        click.echo(
            f"  {row['name']:22} {row['milliseconds']:10.3f} {row['epoch_seconds']:11.2f} {row['run_seconds']:10.1f} "
            f"{row['x_products']:11.2f}"
        )


@click.command()
@click.option("--counts", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--level", "levels", multiple=True, type=click.Choice(LEVELS), default=LEVELS, show_default=True)
@click.option("--recipe", type=click.Choice(sorted(RECIPES)), default="paper-24fps", show_default=True)
@click.option("--precision", type=click.Choice(PRECISIONS), help="Of all products. [default: the recipe's]")
@click.option("--steps", type=click.IntRange(1), default=40, show_default=True, help="Steps timed per contestant.")
@click.option("--turn", type=click.IntRange(1), default=4, show_default=True, help="Steps per turn.")
@click.option("--every", type=click.IntRange(1), default=1, help="Use only every N-th video, to try the script.")
@click.option("--scratch", type=click.Path(path_type=Path), default=Path("work/benchmarks/train"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("work/benchmarks/train.json"), show_default=True)
def main(
    counts: Path,
    device: str,
    levels: tuple[Level, ...],
    recipe: str,
    precision: Precision | None,
    steps: int,
    turn: int,
    every: int,
    scratch: Path,
    out: Path,
) -> None:
    """Time training at a dataset's real size against a plain loop."""
    where = choose_device(device)
    name, chosen = machine(where), with_overrides(RECIPES[recipe], precision=precision)
    if chosen.precision == "auto":
        chosen = with_overrides(chosen, precision="bf16" if multiplies_bf16(str(where)) else "fp32")
    click.echo(f"{name}, torch {torch.__version__}, recipe {recipe}, {chosen.precision}")
    workspace = Workspace(scratch / f"every{every}" if every > 1 else scratch)
    make_cache_of_size(counts, workspace, every)
    split = open_split(workspace, NAME, 1)
    tables = []
    for level in levels:
        config = split.config(level=level, pool="mean", seed=0, recipe=chosen, usual=chosen, holdout=False)
        tables.append(measure(split, config, where, workspace.root, max(1, steps // turn), turn))
        show(tables[-1])
    date = datetime.now(UTC).date().isoformat()
    what = {"device": name, "date": date, "torch": torch.__version__, "recipe": recipe, "precision": chosen.precision}
    write_json_durably(out, what | {"tables": tables})
    click.echo(f"\nfigures: {out}")


if __name__ == "__main__":
    main()
