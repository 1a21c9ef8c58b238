"""Where the time goes on a GPU: rates of the parts of extraction, and profiler tables of one batch and one step.

    python -m benchmarks.gpu_profile --tables profile.txt --out profile.json

Extraction's parts are timed one by one on frames of 320 x 240, in the default precision and batch: copying into pinned
memory, uploading, resizing and cropping, the captured network, downloading. The slowest one is the most that end to end
can reach. The tables are PyTorch's profiler's: one batch of extraction, one captured training step and the same step
launched eagerly (3 x 1024 units, 28 clips of 30 frames, 512 channels, fp32 and bf16).
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.turns import rate, wait_for
from cache.clips import ClipRule
from cache.common.files import write_json_durably
from extract.network.backbones import build_forward
from extract.network.engine import open_engine
from extract.network.preprocess import PAPER, crop_of, crop_views, resize
from extract.network.weights import load_weights
from extract.settings import GPU_DEFAULTS, ExtractSettings, default_precision
from train.clips import Bank, cut
from train.distributed import choose_device
from train.heads import Head
from train.recipes import PRECISIONS, RECIPES, Precision
from train.steps import GraphStep
from train.trainer import Trainer

FRAME = (240, 320, 3)
CLASSES, CHANNELS = 51, 512
TABLE_ROWS = 30


def table(action: Callable[[], object], title: str, device: torch.device) -> str:
    """The profiler's table of one call, what takes longest first."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    action()
    with profile(activities=activities) as found:
        action()
        wait_for(device)
    order = f"{device.type}_time_total"
    rows = found.key_averages().table(sort_by=order, row_limit=TABLE_ROWS, max_name_column_width=70)
    return f"===== {title}\n{rows}\n"


def extraction(device: torch.device, seconds: float) -> tuple[list[dict[str, Any]], str]:
    """Frames a second of each part, and the table of one batch."""
    on_gpu = device.type == "cuda"
    rows = GPU_DEFAULTS.batch_frames if on_gpu else 2
    settings = ExtractSettings(
        weights="random:0", device=str(device), precision=default_precision(str(device)), batch_frames=rows
    )
    weights = load_weights("random:0", settings.backbone)
    engine = open_engine(settings, weights)
    frames = np.random.default_rng(0).integers(0, 256, (rows, *FRAME), dtype=np.uint8)
    crops = [crop_of("v", "center", 0)]

    def batch() -> None:
        engine.fill(engine.prepare(frames, crops).flatten(0, 1), 0)
        engine.submit()
        engine.fetch()

    host = torch.from_numpy(frames)
    pinned = torch.empty_like(host, pin_memory=on_gpu)
    there = host.to(device)
    forward = build_forward(weights, device=str(device), precision=settings.precision, levels=settings.levels)
    crops_B = torch.zeros((rows, PAPER.crop, PAPER.crop, 3), dtype=torch.uint8, device=device)
    parts: dict[str, Callable[[], object]] = {
        "copy into pinned memory": lambda: pinned.copy_(host),
        "upload": lambda: pinned.to(device, non_blocking=True),
        "resize and crop": lambda: crop_views(resize(there), crops),
        "network, launched eagerly": lambda: forward(crops_B),
        "whole batch, one at a time": batch,
    }
    with torch.inference_mode():
        rates = [{"name": name, "frames_per_second": rate(part, rows, device, seconds)} for name, part in parts.items()]
    return rates, table(batch, f"extraction, one batch of {rows}, {settings.precision}", device)


def random_bank(device: torch.device, clips: int, channels: int) -> Bank:
    """A bank of random features: one clip of 30 frames from each video."""
    rule = ClipRule()
    frames = clips * rule.length
    ranges = [range(start, start + rule.length) for start in range(0, frames, rule.length)]
    pts = np.tile(np.arange(rule.length) / 25, clips)
    listed = cut([f"v{index}" for index in range(clips)], (np.arange(clips) % CLASSES).tolist(), ranges, pts, rule)
    generator = torch.Generator().manual_seed(0)
    return Bank(
        features_VFC=torch.randn(1, frames, channels, generator=generator).half().to(device),
        frames_NT=torch.from_numpy(listed.frames_NT).to(device),
        label_N=torch.from_numpy(listed.label_N).to(device),
        clips=listed,
    )


def training(device: torch.device, precision: Precision, hidden: int) -> str:
    """Tables of one step: as training takes it, and launched eagerly where that differs."""
    recipe = replace(RECIPES["paper"], precision=precision, hidden=hidden)
    bank = random_bank(device, 4 * recipe.batch, CHANNELS)
    torch.manual_seed(0)
    trainer = Trainer(Head(CHANNELS, CLASSES, recipe).to(device), bank, recipe, "high", 0)
    clip_B = torch.arange(recipe.batch, device=device)
    view_B = torch.zeros_like(clip_B)
    ways = {"as it is taken": trainer.take_step}
    if isinstance(trainer.take_step, GraphStep):
        ways["launched eagerly"] = trainer.take_step.eager
    return "".join(
        table(lambda step=step: step(clip_B, view_B, recipe.batch), f"training step, {precision}, {name}", device)
        for name, step in ways.items()
    )


@click.command()
@click.option("--device", default="auto", show_default=True)
@click.option("--seconds", default=1.5, show_default=True, help="Time for each part of extraction.")
@click.option("--hidden", default=1024, show_default=True, help="Units of the training step's layers.")
@click.option(
    "--tables", type=click.Path(path_type=Path), default=Path("work/benchmarks/profile.txt"), show_default=True
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("work/benchmarks/profile.json"), show_default=True)
def main(device: str, seconds: float, hidden: int, tables: Path, out: Path) -> None:
    """Time the parts of extraction, and write profiler tables of one batch and one training step."""
    where = choose_device(device)
    tables.parent.mkdir(parents=True, exist_ok=True)
    rates, text = extraction(where, seconds)
    write_json_durably(out, rates)
    tables.write_text(text)
    for each in rates:
        click.echo(f"{each['name']}: {each['frames_per_second']:,.0f} frames/s")
    for precision in PRECISIONS:
        with tables.open("a") as file:
            file.write(training(where, precision, hidden))
    click.echo(f"tables: {tables}")


if __name__ == "__main__":
    main()
