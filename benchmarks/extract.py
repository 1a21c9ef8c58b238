"""Extraction end to end, against the network alone and decoding alone, in one run on one machine.

    python -m benchmarks.extract VIDEOS --weights FILE --videos 24 --rounds 3         # on a CPU: ten minutes
    python -m benchmarks.extract VIDEOS --device cuda --copies 50 --frame-counts ucf101_split1_frames.csv

VIDEOS is a folder with videos. In each of `--rounds` rounds these run one after the other, over the same videos
(`--copies` of each, under new ids):

    network        the folded network on one ready batch of normalised crops, for --seconds; before and after the others
    decoding       the decode pool alone; blocks of frames are released at once
    end to end     what `python -m extract` does after starting: claim, decode, pack, forward, commit to disk

The output has the rates of each round in frames per second, their medians, and the ratio of the end-to-end rate to the
lower of the other two. The aim is 0.9. Before anything is timed, features of the first video have to agree with the
network in fp32 on frames transformed one by one by torchvision.
"""

import csv
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

import click
import torch
from torchvision.transforms import v2

from cache.common.device import find_device
from cache.common.files import write_json_durably
from cache.dataset import Dataset
from cache.store import FeatureCache
from extract.decode import DecodePool, FrameBlock
from extract.fingerprint import fingerprint
from extract.local import extract_pending
from extract.meter import Meter, ticking
from extract.network.backbones import columns_of, read_levels, torch_dtype
from extract.network.engine import Engine, open_engine
from extract.network.preprocess import MEAN, PAPER, STD
from extract.network.weights import Weights, load_weights
from extract.pipeline import decode_settings, extract_features
from extract.settings import ExtractSettings, RequestedSettings

SUFFIXES = (".avi", ".mp4", ".mkv", ".webm", ".mov")
CHECKED_FRAMES = 8
AIM = 0.9


def agree(path: Path, settings: ExtractSettings, weights: Weights) -> float:
    """Lowest cosine, over frames and levels, between extracted features and fp32 ones of torchvision's transform."""
    short = replace(settings, max_frames=CHECKED_FRAMES)
    to_float, scaled = v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)
    transform = v2.Compose([v2.Resize(PAPER.resize, antialias=True), v2.CenterCrop(PAPER.crop), to_float, scaled])
    frames = []
    with DecodePool(decode_settings(short)) as pool:
        for item in pool.decode([("v", path)]):
            if isinstance(item, FrameBlock):
                frames += [transform(torch.from_numpy(frame).permute(2, 0, 1)) for frame in item.frames_FHW3]
                item.release()
    with torch.inference_mode():
        expected = read_levels(weights, device="cpu", dtype=torch.float32, levels=settings.levels)(torch.stack(frames))
    (result,) = extract_features([("v", path)], short, engine=open_engine(short, weights))
    ours = torch.cat([torch.from_numpy(result.features[level][0]) for level in settings.levels], dim=1)
    return min(
        float(torch.cosine_similarity(ours[:, columns].float(), expected[:, columns]).min())
        for columns in columns_of(weights, settings.levels).values()
    )


def network_rate(settings: ExtractSettings, weights: Weights, seconds: float) -> float:
    """Crops per second of the network on a ready batch."""
    dtype, on_gpu = torch_dtype(settings.precision), settings.device != "cpu"
    net = read_levels(weights, device=settings.device, dtype=dtype, levels=settings.levels)
    batch = torch.randn(settings.batch_frames, 3, PAPER.crop, PAPER.crop, device=settings.device).to(dtype)
    batch = batch.contiguous(memory_format=torch.channels_last)
    done, started = 0, 0.0
    with torch.inference_mode():
        for turn in range(10**9):
            net(batch)
            if on_gpu and (turn < 4 or turn % 20 == 0):
                torch.cuda.synchronize()
            if turn == 3:
                started = time.perf_counter()
            elif turn > 3:
                done += settings.batch_frames
                if time.perf_counter() - started > seconds:
                    break
    if on_gpu:
        torch.cuda.synchronize()
    return done / (time.perf_counter() - started)


def decode_rate(videos: Mapping[str, Path], settings: ExtractSettings) -> float:
    """Frames per second of decoding alone, from the first block on."""
    frames, started = 0, 0.0
    with DecodePool(decode_settings(settings)) as pool:
        for item in pool.decode(videos.items()):
            started = started or time.perf_counter()
            if isinstance(item, FrameBlock):
                frames += len(item.frames_FHW3)
                item.release()
    return frames / (time.perf_counter() - started)


def end_to_end(
    videos: Mapping[str, Path], settings: ExtractSettings, weights: Weights, engine: Engine, folder: Path
) -> tuple[float, Meter, list[int]]:
    """Frames per second from the first claim to the last commit, the meter, and this process's MiB, once a second."""
    listed = ((f"{name}{path.suffix}", 0, {}) for name, path in videos.items())
    dataset = Dataset.of_whole_videos("benchmark", "folder", ("all",), listed)
    made_with = fingerprint(settings, weights_text=weights.text, weights_sha256=weights.sha256)
    memory: list[int] = []
    FeatureCache.create(folder / "cache", dataset=dataset, fingerprint=made_with, settings={}).close()
    with (
        FeatureCache.open_for_extraction(folder / "cache", made_with) as cache,
        ticking(1.0, lambda: memory.append(own_memory_mib())),
    ):
        meter, started = Meter(), time.perf_counter()
        extract_pending(cache, videos, settings, made_with, engine, meter)
        rate = meter.frames / (time.perf_counter() - started)
        counts = cache.ledger.counts()
    if counts["failed"] or counts["pending"]:
        raise SystemExit(f"not all videos were extracted: {counts}")
    return rate, meter, memory


def own_memory_mib() -> int:
    """Resident memory of this process that is not shared."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("RssAnon"))


def choose_videos(root: Path, count: int | None, copies: int) -> dict[str, Path]:
    """Files by id: `count` videos, evenly chosen from below `root`, each `copies` times."""
    found = sorted(path.absolute() for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    found = found[:: max(1, len(found) // (count or len(found) or 1))][:count]
    if not found:
        raise SystemExit(f"no videos below {root}")
    return {f"{copy:05d}/{i:05d}": path for copy in range(copies) for i, path in enumerate(found)}


def total_frames(counts: Path) -> int:
    """Frames of a whole dataset, from a CSV with a column frames_decoded_estimate."""
    with counts.open(newline="") as file:
        return sum(int(row["frames_decoded_estimate"]) for row in csv.DictReader(file))


@click.command()
@click.argument("root", metavar="VIDEOS", type=click.Path(exists=True, path_type=Path))
@click.option("--weights", "spec", default="random:0", show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]))
@click.option("--videos", "count", type=int, help="Number of videos, evenly chosen. [default: all]")
@click.option("--copies", default=1, show_default=True, help="Times that each video is extracted.")
@click.option("--max-frames", type=int, help="Frames per video. [default: all]")
@click.option("--jobs", type=int, help="Decode processes. [default: as in extraction]")
@click.option("--rounds", default=3, show_default=True)
@click.option("--seconds", default=15.0, show_default=True, help="Length of each measurement of the network alone.")
@click.option(
    "--frame-counts",
    type=click.Path(exists=True, path_type=Path),
    help="CSV with the frames of a dataset: also print how long that dataset would take.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Also write the figures to this file, as JSON.")
def main(
    root: Path, spec: str, device: str, precision: str | None, count: int | None, copies: int, max_frames: int | None,
    jobs: int | None, rounds: int, seconds: float, frame_counts: Path | None, out: Path | None,
) -> None:  # fmt: skip
    """Time extraction end to end against the network alone and decoding alone."""
    device = find_device(device)
    asked = RequestedSettings(weights=spec, precision=precision, max_frames=max_frames, jobs=jobs)  # type: ignore[arg-type]
    settings = asked.decided(device)
    weights, videos = load_weights(spec, settings.backbone), choose_videos(root, count, copies)
    cosine = agree(next(iter(videos.values())), settings, weights)
    if cosine < 0.999:
        raise SystemExit(f"features do not agree with the reference (cosine {cosine:.5f}); nothing is timed")
    engine, turns = open_engine(settings, weights), []
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            network = network_rate(settings, weights, seconds)
            decoding = decode_rate(videos, settings)
            whole, meter, memory = end_to_end(videos, settings, weights, engine, Path(folder))
            network = (network + network_rate(settings, weights, seconds)) / 2
        turns.append(
            {
                "network": network,
                "decoding": decoding,
                "end_to_end": whole,
                "memory_mib": memory,
                "shares": meter.shares(),
            }
        )
        click.echo(
            f"round {number + 1}: network {network:.1f}, decoding {decoding:.0f}, end to end {whole:.1f} frames/s, "
            f"ratio {whole / min(network, decoding):.3f}; {meter.shares()}; {meter.frames} frames"
        )
    report(settings, weights, cosine, turns, frame_counts, out)


def report(
    settings: ExtractSettings, weights: Weights, cosine: float, turns: list[dict], counts: Path | None, out: Path | None
) -> None:
    """Print medians, the ratio and its aim, memory, and the time for a whole dataset."""
    median = {name: statistics.median(turn[name] for turn in turns) for name in ("network", "decoding", "end_to_end")}
    ratio = statistics.median(turn["end_to_end"] / min(turn["network"], turn["decoding"]) for turn in turns)
    memory = turns[-1]["memory_mib"]
    third = max(1, len(memory) // 3)
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    click.echo(f"\n{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores, load {load}")
    click.echo(f"torch {torch.__version__}, {settings.device} {settings.precision}, weights {weights.text}")
    click.echo(f"features agree with fp32: cosine {cosine:.5f}")
    click.echo(f"median frames/s: {', '.join(f'{name} {rate:.1f}' for name, rate in median.items())}")
    click.echo(f"end to end / the lower of the others: {ratio:.3f} (aim {AIM})")
    click.echo(f"memory of this process: first third {max(memory[:third])} MiB, last third {max(memory[-third:])} MiB")
    click.echo(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB")
    if counts:
        frames = total_frames(counts)
        hours = frames / median["end_to_end"] / 3600
        click.echo(f"{counts.name}: {frames:,} frames would take {hours:.2f} hours at this rate (not measured)")
    if out:
        write_json_durably(out, {
            "time": datetime.now(UTC).isoformat(), "settings": {**asdict(settings), "weights": weights.text},
            "torch": torch.__version__, "cosine": cosine, "ratio": ratio, "median": median, "turns": turns,
        })  # fmt: skip


if __name__ == "__main__":
    main()
