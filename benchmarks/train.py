"""Training a head at HMDB-51's real size, against a plain loop: seconds an epoch, seconds a run, memory.

    python -m benchmarks.train --counts hmdb51_frames.csv            # GPU where there is one; minutes on a processor
    python -m benchmarks.train --counts hmdb51_frames.csv --recipe paper-24fps --level high --steps 40

`--counts` is a CSV with the columns video, class, split1 and frames_decoded_estimate. Features are random numbers, one
view, written through FeatureCache to --scratch (1.2 GB), where a second call finds them. Contestants:

    ours                     bank on the device, clips gathered by index, the recipe's head; a CUDA graph on a GPU
    matrix products          those of that head alone: forward, and backward for weights and inputs
    our head, DataLoader     the same head and fused Adam, fed by a DataLoader with two workers reading HDF5
    nn.LSTM, DataLoader      the plain loop: nn.LSTM of the same size, HDF5 with a dataset a video, Adam, loss.item()

They take turns of --turn steps. An epoch is the median time of a step times the steps of an epoch: the steps are all
alike, and on a processor an epoch of the paper's takes minutes. Before anything is timed, the DataLoader has to give
the same clips, bit for bit, as the bank.
"""

import csv
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.turns import machine, take_turns
from cache.dataset import Dataset as VideoDataset
from cache.dataset import Video
from cache.files import write_json_durably
from cache.fingerprint import Fingerprint
from cache.ledger import Outcome
from cache.schema import CHANNELS, LEVELS, Level
from cache.shards.protocol import ShardData
from cache.store import FeatureCache
from cache.workspace import Workspace
from train.bank import Bank, load_bank
from train.checkpoint import head_settings
from train.devices import choose_device
from train.heads import Head
from train.loop import Trainer
from train.recipes import RECIPES
from train.runs import RunConfig
from train.split import Split, open_split

PRODUCTS = "matrix products"
OURS = "ours"
NAME = "random-features"
WORKERS = 2
WARM_UP_TURNS = 1

TakeSteps = Callable[[int], None]
"""Takes so many steps."""


def make_cache(counts: Path, workspace: Workspace, limit: int | None) -> None:
    """A cache with random features for every video of the CSV, unless it is there already."""
    if (workspace.cache(NAME) / "cache.json").exists():
        return
    with counts.open() as file:
        used = [row for row in csv.DictReader(file) if row["split1"] in ("train", "test")]
    rows = sorted(used, key=lambda row: row["class"] + "/" + row["video"])[:: limit or 1]
    classes = sorted({row["class"] for row in rows})
    frames = {f"{row['class']}/{row['video']}": int(row["frames_decoded_estimate"]) for row in rows}
    videos = [
        Video(id=name, path=f"{name}.avi", label=classes.index(row["class"]), splits={1: row["split1"]})
        for row, name in zip(rows, frames, strict=True)
    ]
    dataset = VideoDataset(name=NAME, source="benchmark", classes=tuple(classes), videos=tuple(videos))
    identity = {"weights": "random numbers", "levels": list(LEVELS), "views": ["center"]}
    fingerprint = Fingerprint(identity=identity, environment={})
    generator = np.random.default_rng(0)
    with FeatureCache.create(
        workspace.cache(NAME), dataset=dataset, fingerprint=fingerprint, settings={}, backend="h5"
    ) as cache:
        while claim := cache.ledger.claim("benchmark", 256, 3600.0):
            ids = [video.id for video in claim.videos]
            lengths = [frames[video] for video in ids]
            data = ShardData(
                video_ids=tuple(ids),
                offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
                pts_seconds=np.concatenate([np.arange(length) / 30 for length in lengths]),
                features={
                    level: generator.standard_normal((1, sum(lengths), CHANNELS[level]), np.float32).astype(np.float16)
                    for level in LEVELS
                },
            )
            done = [Outcome(video_id=name, status="done", num_frames=n) for name, n in zip(ids, lengths, strict=True)]
            cache.commit(claim, data, done, {})


class PlainClips(Dataset):  # type: ignore[type-arg]
    """Clips as they are usually read: an HDF5 file with a dataset for each video, opened by each worker."""

    def __init__(self, path: Path, bank: Bank) -> None:
        self.path, self.clips = path, bank.clips
        firsts = np.searchsorted(bank.clips.video_N, np.arange(len(bank.clips.video_ids)))
        self.first_frame = bank.clips.frames_NT[firsts, 0]
        self.file: h5py.File | None = None

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, clip: int) -> tuple[Tensor, int]:
        """Features `[T, C]` float32 and label of one clip."""
        self.file = self.file or h5py.File(self.path)
        video = int(self.clips.video_N[clip])
        frames_T = self.clips.frames_NT[clip] - self.first_frame[video]
        start, stop = frames_T.min(), frames_T.max() + 1
        clip_TC = self.file[str(video)][start:stop][frames_T - start]
        return torch.from_numpy(clip_TC.astype(np.float32)), int(self.clips.label_N[clip])


def write_plain_file(path: Path, split: Split, level: Level) -> None:
    """The training videos' features, a dataset each."""
    with h5py.File(path, "w") as file:
        for index, video in enumerate(split.training):
            file[str(index)] = split.cache.features(video.id, level)


def batches(clips: PlainClips, batch: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled batches without end: `[T, B, C]` and labels on the device."""
    loader = DataLoader(
        clips, batch, shuffle=True, num_workers=WORKERS, pin_memory=device.type == "cuda", drop_last=True
    )
    while True:
        for x_BTC, label_B in loader:
            yield x_BTC.to(device).transpose(0, 1), label_B.to(device)


class PlainLSTM(nn.Module):
    """nn.LSTM, tanh, linear at each step, mean over time."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        recipe = config.recipe
        self.lstm = nn.LSTM(CHANNELS[config.level], recipe.hidden, recipe.layers)
        self.linear = nn.Linear(recipe.hidden, len(config.classes))

    def forward(self, x_TBC: Tensor) -> Tensor:
        """Logits `[B, K]`."""
        logits: Tensor = self.linear(torch.tanh(self.lstm(x_TBC)[0])).mean(dim=0)
        return logits


def plain_loop(head: nn.Module, source: Iterator[tuple[Tensor, Tensor]], fused: bool) -> TakeSteps:
    """The loop that everybody writes first."""
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-5, fused=fused)
    head.train()

    def take(steps: int) -> None:
        for _ in range(steps):
            x_TBC, label_B = next(source)
            loss = nn.functional.cross_entropy(head(x_TBC), label_B)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()

    return take


def our_loop(trainer: Trainer) -> TakeSteps:
    """Steps of the trainer, epoch after epoch."""
    ticks = trainer.run(tick_seconds=0.0 if trainer.device.type == "cpu" else 1e9)

    def take(steps: int) -> None:
        if trainer.device.type == "cpu":
            for _ in range(steps):
                next(ticks)
            return
        clip_N, view_N = (each.to(trainer.device) for each in trainer._order())
        batch = trainer.recipe.batch
        for step in range(steps):
            at = (step * batch) % (len(clip_N) - batch)
            trainer.take_step(clip_N[at : at + batch], view_N[at : at + batch], batch)
        trainer.tally.read(trainer.group)

    return take


def products(head: Head, steps_in_clip: int, batch: int, device: torch.device) -> TakeSteps:
    """The head's matrix products: forward, and backward for weights and (but for features) inputs."""
    rows, operands = steps_in_clip * batch, []
    matrices = [each.detach().flatten(0, -2) for each in head.parameters() if each.dim() > 1 and each.shape[-1] > 2]
    for layer, weight_UC in enumerate(matrices):
        x = torch.randn(rows, weight_UC.shape[1], device=device)
        operands.append((layer, x, weight_UC, torch.randn(rows, len(weight_UC), device=device)))

    def take(steps: int) -> None:
        for _ in range(steps):
            for _, x, weight_UC, _ in operands:
                nn.functional.linear(x, weight_UC)
            for layer, x, weight_UC, gradient in reversed(operands):
                gradient.T @ x
                if layer > 0:
                    gradient @ weight_UC
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return take


def check(bank: Bank, clips: PlainClips) -> None:
    """The plain loop reads the clips that the bank gathers."""
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
    batch, settings = config.recipe.batch, head_settings(config)
    trainer = Trainer(Head(settings).to(device), bank, config.recipe, config.level, 0)
    ours_plainly = plain_loop(Head(settings).to(device), batches(clips, batch, device), fused=True)
    contestants: dict[str, TakeSteps] = {
        PRODUCTS: products(trainer.head, config.clips.length, batch, device),
        OURS: our_loop(trainer),
        "our head, DataLoader": ours_plainly,
        "nn.LSTM, DataLoader": plain_loop(PlainLSTM(config).to(device), batches(clips, batch, device), fused=False),
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
    """Most memory used so far: on the GPU, or by this process."""
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
@click.option("--steps", type=click.IntRange(1), default=40, show_default=True, help="Steps timed of each contestant.")
@click.option("--turn", type=click.IntRange(1), default=4, show_default=True, help="Steps in one turn.")
@click.option("--every", type=click.IntRange(1), help="Take every N-th video only: to try the script out.")
@click.option("--scratch", type=click.Path(path_type=Path), default=Path("work/benchmarks/train"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("work/benchmarks/train.json"), show_default=True)
def main(
    counts: Path,
    device: str,
    levels: tuple[Level, ...],
    recipe: str,
    steps: int,
    turn: int,
    every: int | None,
    scratch: Path,
    out: Path,
) -> None:
    """Time training at a dataset's real size against a plain loop."""
    where = choose_device(device)
    name = machine(where)
    click.echo(f"{name}, torch {torch.__version__}, recipe {recipe}")
    workspace = Workspace(scratch / f"every{every}" if every else scratch)
    make_cache(counts, workspace, every)
    split = open_split(workspace, NAME, 1)
    tables = []
    for level in levels:
        chosen = RECIPES[recipe]
        config = split.config(level=level, pool="mean", seed=0, recipe=chosen, usual=chosen, holdout=False)
        tables.append(measure(split, config, where, workspace.root, max(1, steps // turn), turn))
        show(tables[-1])
    date = datetime.now(UTC).date().isoformat()
    write_json_durably(
        out, {"device": name, "date": date, "torch": torch.__version__, "recipe": recipe, "tables": tables}
    )
    click.echo(f"\nfigures: {out}")


if __name__ == "__main__":
    main()
