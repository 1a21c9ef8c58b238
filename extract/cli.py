"""`python -m extract`: videos to cached features, once; the same command continues."""

from typing import Any

import click

from cache.common.console import StageGroup, dataset_option, work_option
from cache.common.errors import CacheError
from cache.fingerprint import LEVELS
from cache.remote.client import Location
from extract.data_cli import data_command
from extract.decode import DECODER_NAMES, DEFAULT_DECODER, parse_limits
from extract.network.preprocess import parse_views
from extract.probe_cli import probe_command
from extract.settings import BACKBONES, PRECISIONS


def _views(_context: click.Context, _parameter: click.Parameter, text: str | None) -> list[str] | None:
    try:
        return None if text is None else list(parse_views(text))
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _levels(_context: click.Context, _parameter: click.Parameter, text: str | None) -> list[str] | None:
    if text is None:
        return None
    asked = [part.strip() for part in text.split(",")]
    if unknown := [part for part in asked if part not in LEVELS]:
        raise click.BadParameter(f"{unknown[0]!r} is not one of {', '.join(LEVELS)}")
    return [level for level in LEVELS if level in asked]


def _limits(_context: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]) -> dict[str, float] | None:
    try:
        return parse_limits(texts) or None
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _location(_context: click.Context, _parameter: click.Parameter, text: str | None) -> Location | None:
    try:
        return None if text is None else Location.parse(text)
    except CacheError as error:
        raise click.BadParameter(str(error)) from error


@click.group(cls=StageGroup, invoke_without_command=True, context_settings={"max_content_width": 110})
@work_option
@dataset_option
@click.option("--data", metavar="PATH", help="Folder of the videos, or a .csv manifest. [default: data/NAME]")
@click.option("--allow-remote", is_flag=True, help="A manifest's videos may be https:// and s3:// addresses.")
@click.option("--subset", is_flag=True, default=None, help="Allow that listed videos are missing; reports say so.")
@click.option(
    "--weights",
    metavar="WEIGHTS",
    help="imagenet1k_v1 (torchvision's), a .pth or .safetensors file, or random:SEED. "
    "[default: imagenet1k_v1; random:0 for the demo]",
)
@click.option("--backbone", type=click.Choice(BACKBONES), help="[default: resnet34]")
@click.option("--levels", metavar="LIST", callback=_levels, help="Levels to keep. [default: low,mid,high]")
@click.option(
    "--views",
    metavar="LIST",
    callback=_views,
    help="Crops of each video, from one decoding: center, center_flip, random:COUNT. [default: center]",
)
@click.option("--max-frames", type=click.IntRange(min=1), help="Keep only the first so many frames of a video.")
@click.option("--fps", type=click.FloatRange(min=0, min_open=True), help="Keep at most so many frames a second.")
@click.option("--device", metavar="DEVICE", help="auto, cpu, cuda, or several: cuda:0,cuda:1. [default: auto]")
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help="What the network computes in; fp32 is the reference. [default: bf16 on a CPU that has it, fp16 on a GPU]",
)
@click.option("--batch-frames", type=click.IntRange(1, 65536), help="Crops in a batch. [default: 32, on a GPU 256]")
@click.option("--decoder", type=click.Choice(DECODER_NAMES), help=f"[default: {DEFAULT_DECODER}]")
@click.option("--jobs", type=click.IntRange(1, 1024), help="Videos decoded at once. [default: by the number of cores]")
@click.option("--format", "backend", type=click.Choice(["h5", "zarr"]), help="Of a new cache's shards. [default: h5]")
@click.option(
    "--limit",
    "limits",
    metavar="NAME=NUMBER",
    multiple=True,
    callback=_limits,
    help="What one video may cost before it fails: pixels, frames, file_bytes, stall_seconds, video_seconds, "
    "processor_seconds, memory_bytes. May be given several times. [default: docs/videos.md, Limits]",
)
@click.option(
    "--cache",
    "location",
    metavar="s3://BUCKET/PREFIX",
    callback=_location,
    help="Keep the cache in an object store; below --work is a working copy, which remembers it (docs/scale.md).",
)
@click.option("--strict", is_flag=True, default=None, help="Leave out videos that decode suspiciously.")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="ray: on the cluster at $RAY_ADDRESS, else with Ray on this machine (docs/scale.md).",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="With --engine ray: GPUs, or cores, to use. [default: all that the cluster has now]",
)
@click.option("--retry-failed", is_flag=True, help="Try the failed videos once more.")
@click.option("--allow-drift", is_flag=True, help="Go on although versions or device differ; shards record it.")
@click.option("--worker", is_flag=True, hidden=True)  # one of several processes that `extract.local` starts
@click.pass_context
def main(context: click.Context, **options: Any) -> None:
    """Turn the videos of a data set into cached features, once.

    Whatever interrupts it, the same command continues, and options that are not given are those of the cache that is
    there. Several extractors may work on one cache at a time. Ends with exit code 3 if videos failed; they are listed.

    \b
    python -m extract                                          the demo, or what was extracted last
    python -m extract --dataset ucf101 --data ~/UCF101         official layout: UCF-101/, ucfTrainTestlist/
    python -m extract --dataset mine --data videos/            folders of classes: videos/CLASS/clip.mp4
    python -m extract --dataset mine --data list.csv           a manifest: video,label,split1
    """
    if context.invoked_subcommand is None:
        from extract.run import run

        context.exit(run(options))


main.add_command(data_command)
main.add_command(probe_command)
