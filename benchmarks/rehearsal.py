"""The whole pipeline at the official size, with tiny videos: what it costs beside decoding and the networks.

    python -m benchmarks.rehearsal --splits FOLDER      # needs ucfTrainTestlist/ and testTrainMulti_7030_splits/

Makes a video of 64 x 48 pixels and 30 to 46 frames for each class, links it under every name that the official lists
give that class, and runs `extract`, `extract` again, `train` and `fuse` on all of them, each in a process of its own.
No subset is asked for, so every count is compared with the published one. **The backbone is replaced by a stand-in**,
a fixed random projection of the frame shrunk to 8 x 8 pixels; videos are really decoded. All videos of
a class are the same, so an accuracy below 100 % is a fault, and the figures say nothing about the method.

Prints one JSON object. `beside` is the time without waiting for decoded frames and without network: of `extract` by
its own meter, of `train` without the steps of its epochs. `mib_peak` is the largest process of the stage.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

import extract.local
from cache.common.workspace import Workspace
from cache.fingerprint import CHANNELS, LEVELS
from cache.store import FeatureCache
from extract.datasets import hmdb51, ucf101
from extract.datasets.demo import encode
from extract.meter import Forecast, Meter
from extract.network.engine import Engine, FeaturesBC
from extract.network.preprocess import PAPER
from extract.network.weights import Weights
from extract.settings import ExtractSettings

if TYPE_CHECKING:
    import torch

LAYOUTS = {"ucf101": ucf101, "hmdb51": hmdb51}
HEIGHT, WIDTH, SHRUNK = 48, 64, 8
RECIPE = "small"  # the default for own data


class StandInEngine:
    """In place of the backbone: features are a fixed random projection of the shrunk frame."""

    depth = 0
    preprocess = PAPER

    def __init__(self, batch_rows: int) -> None:
        import torch  # not above: `fuse` does without, and its memory is measured

        self.batch_rows = batch_rows
        ends = accumulate(CHANNELS[level] for level in LEVELS)
        self.columns = {level: slice(end - CHANNELS[level], end) for level, end in zip(LEVELS, ends, strict=True)}
        channels = sum(CHANNELS.values())
        matrix = np.random.default_rng(0).standard_normal((SHRUNK * SHRUNK * 3, channels), np.float32)
        self._matrix = torch.from_numpy(matrix / SHRUNK)
        self._batch = torch.zeros((batch_rows, SHRUNK, SHRUNK, 3), dtype=torch.uint8)
        self._done: deque[FeaturesBC] = deque()

    def prepare(self, frames_FHW3: NDArray[np.uint8], crops: Sequence[object]) -> "torch.Tensor":
        """Every sixth row and eighth column, as one view of `[F, 1, 8, 8, 3]`."""
        import torch

        step_y, step_x = HEIGHT // SHRUNK, WIDTH // SHRUNK
        return torch.from_numpy(frames_FHW3[:, step_y // 2 :: step_y, step_x // 2 :: step_x].copy())[:, None]

    def fill(self, rows_BHW3: "torch.Tensor", start: int) -> None:
        self._batch[start : start + len(rows_BHW3)] = rows_BHW3

    def submit(self) -> None:
        self._done.append((self._batch.flatten(1).float().div(255) @ self._matrix).relu().half().numpy())

    def fetch(self) -> FeaturesBC:
        return self._done.popleft()


def make_data(name: str, splits: Path, folder: Path) -> int:
    """Lay out the dataset `name` in `folder`, as its archives unpack; returns the number of videos."""
    layout = LAYOUTS[name]
    shutil.copytree(splits / layout.LISTS, folder / layout.LISTS, dirs_exist_ok=True, copy_function=shutil.copyfile)
    listed = layout.read_lists(name, folder / layout.LISTS)
    drawn = folder / "classes"
    drawn.mkdir(exist_ok=True)
    for label, class_name in enumerate(listed.classes):
        (drawn / f"{label}.avi").write_bytes(encode(draw(label), "avi"))
        (folder / layout.VIDEOS / class_name).mkdir(parents=True, exist_ok=True)
    label_of = {sample.video: sample.label for sample in listed.samples}
    for video in listed.videos:
        path = folder / layout.VIDEOS / video.path
        path.unlink(missing_ok=True)
        path.hardlink_to(drawn / f"{label_of[video.id]}.avi")
    return len(listed.videos)


def draw(label: int) -> NDArray[np.uint8]:
    """The frames of a class `[F, 48, 64, 3]`: a mosaic of 8 x 8 coloured fields that fades into another one."""
    first, last = np.random.default_rng(label).integers(0, 256, (2, SHRUNK, SHRUNK, 3))
    done_F = np.linspace(0, 1, 30 + 8 * (label % 3))[:, None, None, None]
    mosaic = (first * (1 - done_F) + last * done_F).astype(np.uint8)
    return mosaic.repeat(HEIGHT // SHRUNK, axis=1).repeat(WIDTH // SHRUNK, axis=2)


def run_replaced(stage: str, arguments: Sequence[str], figures: Path) -> None:
    """`python -m STAGE`, with the stand-in for the backbone, whose meter's seconds go to `figures`."""
    meter = Meter()

    def stand_in(_spec: str, backbone: str) -> Weights:
        return Weights(text="stand-in of benchmarks/rehearsal.py", backbone=backbone, tensors={}, sha256="stand-in")

    extract.local.load_weights = stand_in

    def open_stand_in(settings: ExtractSettings, _weights: Weights) -> Engine:
        return StandInEngine(settings.batch_frames)

    extract.local.open_engine = open_stand_in

    def with_forecast(forecast: Forecast | None) -> Meter:
        meter.forecast = forecast
        return meter

    extract.local.Meter = with_forecast
    try:
        import_module(f"{stage}.cli").main(list(arguments))
    finally:
        figures.write_text(json.dumps(meter.seconds))


def run_stage(stage: str, arguments: Sequence[str], log: Path, figures: Path) -> dict[str, Any]:
    """Run a stage in a process of its own to its end; returns its times, and the memory of its largest process."""
    command = [sys.executable, "-m", "benchmarks.rehearsal", "--stage", stage, "--figures", str(figures), *arguments]
    started = time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"{stage} ended with {process.returncode}:\n{log.read_text()[-3000:]}")
    return {
        "seconds": round(seconds, 1),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
        "mib_peak": round(used.ru_maxrss / 1024),
    }


def rehearse(name: str, splits: Path, root: Path) -> dict[str, Any]:
    """All stages on one dataset; returns their figures."""
    data, workspace, figures = root / "data" / name, Workspace(root), root / "meter.json"
    started = time.perf_counter()
    videos = make_data(name, splits, data)
    found: dict[str, Any] = {"videos": videos, "made_seconds": round(time.perf_counter() - started, 1)}
    chosen = ["--work", str(root), "--dataset", name]
    for title in ("extract", "extract again"):
        log = root / f"{name}-{title.replace(' ', '-')}.log"
        found[title] = run_stage("extract", [*chosen, "--data", str(data)], log, figures)
        spent = json.loads(figures.read_text())
        found[title] |= _beside(found[title], spent["decode"] + spent["transfer"] + spent["forward"])
    with FeatureCache.open(workspace.cache(name)) as cache:
        found["cache"] = {"shards": len(cache.ledger.shards()), "counts": cache.ledger.counts()}
    found["cache"]["mib"] = _mib(workspace.cache(name))
    chosen += ["--recipe", RECIPE]
    found["train"] = run_stage("train", chosen, root / f"{name}-train.log", figures)
    folders = sorted(workspace.runs(name, 1).glob(f"*-{RECIPE}"))
    rows = [json.loads(row) for each in folders for row in (each / "metrics.jsonl").read_text().splitlines()]
    found["train"] |= _beside(found["train"], sum(row["seconds"] for row in rows))
    found["fuse"] = run_stage("fuse", chosen, root / f"{name}-fuse.log", figures)
    report = workspace.report(name, 1)
    summary = json.loads((report / "results.json").read_text())
    found["report"] = {
        "test_videos": summary["videos"],
        "accuracy": summary["accuracy"],
        "subset": summary["subset"],
        "page_mib": round((report / "report.html").stat().st_size / 2**20, 2),
        "folder_mib": _mib(report),
    }
    return found


def _beside(stage: Mapping[str, Any], left_out: float) -> dict[str, float]:
    return {"left_out_seconds": round(left_out, 1), "beside_seconds": round(stage["seconds"] - left_out, 1)}


def _mib(folder: Path) -> float:
    return round(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20, 2)


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--splits", type=click.Path(exists=True, file_okay=False, path_type=Path), help="The official lists.")
@click.option("--work", "root", type=click.Path(path_type=Path), default=Path("work/rehearsal"), show_default=True)
@click.option("--dataset", "names", multiple=True, type=click.Choice(list(LAYOUTS)), help="[default: both]")
@click.option("--stage", hidden=True, help="Be this stage, in this process.")
@click.option("--figures", type=click.Path(path_type=Path), hidden=True)
@click.argument("rest", nargs=-1, type=click.UNPROCESSED)
def main(
    splits: Path | None,
    root: Path,
    names: tuple[str, ...],
    stage: str | None,
    figures: Path | None,
    rest: tuple[str, ...],
) -> None:
    """Run all stages on every name of UCF-101's and HMDB-51's official lists."""
    if stage and figures:
        run_replaced(stage, ["--work", str(root), "--dataset", *names, *rest], figures)
        return
    if not splits or rest:
        raise click.UsageError("--splits FOLDER is needed: where ucfTrainTestlist/ and testTrainMulti_7030_splits/ are")
    root.mkdir(parents=True, exist_ok=True)
    for name in names or LAYOUTS:
        made = {"dataset": name, "date": datetime.now(UTC).date().isoformat(), "cores": os.cpu_count()}
        click.echo(json.dumps({**made, "machine": platform.machine(), **rehearse(name, splits, root)}, indent=2))


if __name__ == "__main__":
    main()
