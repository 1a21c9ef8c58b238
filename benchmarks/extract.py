"""Extraction end to end, against the network alone, decoding alone and a plain script, in one run on one machine.

    python -m benchmarks.extract VIDEOS --weights FILE --videos 24             # on a CPU: ten minutes
    python -m benchmarks.extract VIDEOS --weights FILE --videos 5 --naive
    python -m benchmarks.extract VIDEOS --device cuda --copies 50

VIDEOS is a folder with videos. In each of `--rounds` rounds these run one after the other, over the same videos
(`--copies` of each, under new ids):

    network        the folded network on one ready batch of normalised crops, for --seconds; before and after the others
    decoding       the decode pool alone, for --seconds; blocks of frames are released at once
    end to end     what `python -m extract` does after starting: claim, decode, pack, forward, commit to disk
    plain script   with --naive: benchmarks/naive.py, which loads no weights and starts no process in that time

The output has the rates of each round in frames per second, their medians, and the ratio of the end-to-end rate to the
lower of the first two. The aim is 0.9. Before anything is timed, the first frames of the first video have to have the
plain script's features; with --naive all frames of all videos.
"""

import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.naive import LevelFeatures, naive_extractor, naive_features
from benchmarks.turns import own_memory_mib, rate
from cache.common.device import find_device
from cache.common.files import write_json_durably
from cache.dataset import Dataset
from cache.store import FeatureCache
from extract.datasets.paths import find_videos
from extract.fingerprint import fingerprint
from extract.local import extract_pending
from extract.meter import Meter, ticking
from extract.network.backbones import read_levels, torch_dtype
from extract.network.engine import Engine, open_engine
from extract.network.preprocess import PAPER
from extract.network.weights import Weights, load_weights
from extract.probe import measure_decoder
from extract.settings import ExtractSettings, RequestedSettings

CHECKED_FRAMES = 8
LEAST_COSINE = 0.999
AIM = 0.9


def network_rate(settings: ExtractSettings, weights: Weights, seconds: float) -> float:
    """Crops per second of the network on a ready batch."""
    dtype = torch_dtype(settings.precision)
    net = read_levels(weights, device=settings.device, dtype=dtype, levels=settings.levels)
    batch = torch.randn(settings.batch_frames, 3, PAPER.crop, PAPER.crop, device=settings.device).to(dtype)
    batch = batch.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        return rate(lambda: net(batch), len(batch), torch.device(settings.device), seconds)


def end_to_end(
    videos: Mapping[str, Path], settings: ExtractSettings, weights: Weights, engine: Engine, path: Path
) -> tuple[float, Meter, list[int]]:
    """Extract into a new cache at `path`.

    Returns frames per second from the first claim to the last commit, the meter, and this process's MiB, once a second.
    """
    listed = ((f"{name}{file.suffix}", 0, {}) for name, file in videos.items())
    dataset = Dataset.of_whole_videos("benchmark", "folder", ("all",), listed)
    made_with = fingerprint(settings, weights_text=weights.text, weights_sha256=weights.sha256)
    memory: list[int] = []
    FeatureCache.create(path, dataset=dataset, fingerprint=made_with, settings={}).close()
    with (
        FeatureCache.open_for_extraction(path, made_with) as cache,
        ticking(1.0, lambda: memory.append(own_memory_mib())),
    ):
        meter, started = Meter(), time.perf_counter()
        extract_pending(cache, videos, settings, made_with, engine, meter)
        frames_per_second = meter.frames / (time.perf_counter() - started)
        counts = cache.ledger.counts()
    if counts["failed"] or counts["pending"]:
        raise SystemExit(f"not all videos were extracted: {counts}")
    return frames_per_second, meter, memory


def check(path: Path, expected: Mapping[str, LevelFeatures]) -> float:
    """Lowest cosine between features in the cache at `path` and the plain script's, over videos, levels and frames.

    Ends the benchmark where they do not agree.
    """
    least = 1.0
    with FeatureCache.open(path) as cache:
        for video_id, levels in expected.items():
            for level in cache.levels:
                ours = torch.from_numpy(cache.features(video_id, level)).float()
                if ours.shape != levels[level].shape:
                    raise SystemExit(
                        f"{video_id} has {len(levels[level])} frames for the plain script, {len(ours)} here"
                    )
                least = min(least, float(torch.cosine_similarity(ours, levels[level]).min()))
    if least < LEAST_COSINE:
        raise SystemExit(f"features do not agree with the plain script's (cosine {least:.5f}); nothing is reported")
    return least


def choose_videos(root: Path, count: int | None, copies: int) -> dict[str, Path]:
    """Files by id: `count` videos, evenly chosen from below `root`, each `copies` times."""
    root = root.resolve()
    found = find_videos(root)
    if not found:
        raise SystemExit(f"no videos below {root}")
    found = found[:: max(1, len(found) // (count or len(found)))][:count]
    return {f"{copy:05d}/{i:05d}": root / path for copy in range(copies) for i, path in enumerate(found)}


@click.command()
@click.argument("root", metavar="VIDEOS", type=click.Path(exists=True, path_type=Path))
@click.option("--weights", "spec", default="random:0", show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--videos", "count", type=int, help="Number of videos, evenly chosen. [default: all]")
@click.option("--copies", default=1, show_default=True, help="Times that each video is extracted.")
@click.option("--max-frames", type=int, help="Frames per video. [default: all]")
@click.option("--naive", is_flag=True, help="Also time the plain script, on the CPU.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--seconds", default=15.0, show_default=True, help="Length of the measurements of one part alone.")
@click.option("--out", type=click.Path(path_type=Path), help="Also write the figures to this file, as JSON.")
def main(
    root: Path, spec: str, device: str, count: int | None, copies: int, max_frames: int | None, naive: bool,
    rounds: int, seconds: float, out: Path | None,
) -> None:  # fmt: skip
    """Time extraction end to end against the network alone, decoding alone and a plain script."""
    settings = RequestedSettings(weights=spec, max_frames=max_frames).decided(find_device(device))
    weights, videos = load_weights(spec, settings.backbone), choose_videos(root, count, copies)
    engine, extractor, turns = open_engine(settings, weights), naive_extractor(weights), []
    first = dict([next(iter(videos.items()))])

    def plain(chosen: Mapping[str, Path], frames: int | None) -> dict[str, LevelFeatures]:
        return {video_id: naive_features(path, extractor, frames) for video_id, path in chosen.items()}

    with tempfile.TemporaryDirectory() as folder:
        end_to_end(first, replace(settings, max_frames=CHECKED_FRAMES), weights, engine, Path(folder, "cache"))
        cosine = check(Path(folder, "cache"), plain(first, CHECKED_FRAMES))
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            network = network_rate(settings, weights, seconds)
            decoding = measure_decoder(settings, list(videos.items()), seconds).rate
            whole, meter, memory = end_to_end(videos, settings, weights, engine, Path(folder, "cache"))
            network = (network + network_rate(settings, weights, seconds)) / 2
            rates = {"network": network, "decoding": decoding, "end_to_end": whole}
            if naive:
                started = time.perf_counter()
                theirs = plain(videos, max_frames)
                rates["plain_script"] = meter.frames / (time.perf_counter() - started)
                cosine = min(cosine, check(Path(folder, "cache"), theirs))
        turns.append({**rates, "memory_mib": memory, "shares": meter.shares()})
        click.echo(f"round {number + 1}: {text(rates)}; {meter.shares()}; {meter.frames} frames")
    report(settings, weights, cosine, turns, out)


def text(rates: Mapping[str, float]) -> str:
    """Frames per second by name, and their ratios."""
    whole, limit = rates["end_to_end"], min(rates["network"], rates["decoding"])
    said = ", ".join(f"{name.replace('_', ' ')} {rate:.1f}" for name, rate in rates.items())
    said += f" frames/s; end to end / the lower of network and decoding: {whole / limit:.3f}"
    return said + (f", / plain script: {whole / rates['plain_script']:.2f}" if "plain_script" in rates else "")


def report(
    settings: ExtractSettings, weights: Weights, cosine: float, turns: list[dict[str, Any]], out: Path | None
) -> None:
    """Print and write medians, their ratios, and memory."""
    names = [name for name, value in turns[0].items() if isinstance(value, float)]
    median = {name: statistics.median(turn[name] for turn in turns) for name in names}
    memory = turns[-1]["memory_mib"]
    third = max(1, len(memory) // 3)
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    click.echo(f"\n{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores, load {load}")
    click.echo(f"torch {torch.__version__}, {settings.device} {settings.precision}, weights {weights.text}")
    click.echo(f"features agree with the plain script's in fp32: cosine {cosine:.5f}")
    click.echo(f"medians: {text(median)} (aim {AIM})")
    click.echo(f"memory of this process: first third {max(memory[:third])} MiB, last third {max(memory[-third:])} MiB")
    click.echo(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB")
    if out:
        write_json_durably(out, {
            "time": datetime.now(UTC).isoformat(), "settings": {**asdict(settings), "weights": weights.text},
            "torch": torch.__version__, "cosine": cosine, "median": median, "turns": turns,
        })  # fmt: skip


if __name__ == "__main__":
    main()
