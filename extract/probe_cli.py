"""`python -m extract probe`: time the decoders and the stages behind them on the user's own videos."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from extract.settings import IMAGENET

if TYPE_CHECKING:
    from extract.probe import Alone, DecodeRate, EndToEnd

_STAGES = {"decode": "decoding", "transfer": "resizing and copying", "forward": "the network", "write": "writing"}
_SAME = 0.05


@click.command("probe")
@click.argument("paths", nargs=-1, required=True, metavar="VIDEO...", type=click.Path(exists=True, path_type=Path))
@click.option("--seconds", type=click.FloatRange(min=0.5), default=5.0, show_default=True, help="For each measurement.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:INDEX.")
@click.option("--jobs", type=click.IntRange(1, 1024), help="Videos decoded at once. [default: as extraction has it]")
@click.option(
    "--weights",
    default="random:0",
    show_default=True,
    help=f"As for extraction ({IMAGENET}, a file, random:SEED); speed does not depend on them.",
)
def probe_command(paths: tuple[Path, ...], seconds: float, device: str, jobs: int | None, weights: str) -> None:
    """Time each installed decoder on your own videos, and say which is fastest and where the time goes.

    VIDEO is a file, or a folder that is searched for videos; 64 of them are drawn. For each decoder: frames a second
    decoded by all workers, for each second of processor time, and in a whole extraction with this device.

    \b
    python -m extract probe data/ucf101
    python -m extract probe clip.mp4 --device cpu --seconds 10
    """
    from dataclasses import replace

    from cache.common.device import find_device
    from extract import probe
    from extract.decode import DECODER_NAMES
    from extract.device import CPU_BATCH, GPU_BATCH, default_jobs, default_precision
    from extract.network.engine import open_engine
    from extract.network.weights import load_weights
    from extract.settings import ExtractSettings

    videos = probe.sample_videos(paths)
    found = find_device(device)
    precision = default_precision(found)
    settings = ExtractSettings(
        weights=weights,
        device=found,
        precision=precision,
        batch_frames=GPU_BATCH if found.startswith("cuda") else CPU_BATCH,
        jobs=jobs or default_jobs(found),
    )
    engine = open_engine(settings, load_weights(settings.weights, settings.backbone))
    click.echo(f"{len(videos)} videos, {settings.jobs} decoded at once, network on {found} in {precision}")
    click.echo(f"{'decoder':<28}{'frames/s':>10}{'per core':>10}{'failed':>8}{'suspect':>9}{'end to end':>12}")
    rates: list[tuple[DecodeRate, EndToEnd]] = []
    for name in DECODER_NAMES:
        chosen = replace(settings, decoder=name)
        alone = probe.measure_decoder(chosen, videos, seconds)
        if alone.missing:
            click.echo(f"{name:<28}{alone.missing}")
            continue
        rates.append((alone, probe.measure_end_to_end(chosen, engine, videos, seconds)))
        click.echo(_row(*rates[-1]))
    stages = probe.measure_alone(settings, engine, videos, seconds)
    click.echo(_verdict(rates, stages))


def _row(alone: "DecodeRate", whole: "EndToEnd") -> str:
    return (
        f"{f'{alone.decoder} ({alone.version})':<28}{alone.rate:>10,.0f}{alone.rate_per_core:>10,.0f}"
        f"{alone.failed:>8}{alone.suspect:>9}{whole.rate:>12,.1f}"
    )


def _verdict(rates: "list[tuple[DecodeRate, EndToEnd]]", stages: "Alone") -> str:
    """Which decoder to take, where the time goes, and what each stage could do alone."""
    fastest, _ = max(rates, key=lambda pair: pair[0].rate)
    chosen, whole = max(rates, key=lambda pair: pair[1].rate)
    slowest = min(whole.rate for _, whole in rates)
    shares = ", ".join(f"{_STAGES[stage]} {100 * share:.0f} %" for stage, share in whole.shares.items())
    choice = (
        f"end to end they differ by less than {100 * _SAME:.0f} %: decoding is not what limits the extraction"
        if slowest > (1 - _SAME) * whole.rate
        else f"fastest end to end: {chosen.decoder}, {whole.rate / slowest:.2f} times the slowest"
    )
    return (
        f"fastest decoder: {fastest.decoder}; {choice}\n"
        f"time of the extraction with {chosen.decoder}: waiting for {shares}\n"
        f"each stage alone, frames/s: decoding {chosen.rate:,.0f}, resizing and copying {stages.transfer:,.0f}, "
        f"the network {stages.forward:,.0f}, writing {stages.write:,.0f}"
    )
