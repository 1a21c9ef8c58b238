"""`mrrn extract`: videos to cached features, once; the same command continues."""

from collections.abc import Callable
from dataclasses import Field, fields
from functools import reduce
from pathlib import Path
from typing import Any

import click

from cache.common.commands import advised
from cache.common.console import FiniteRange, NameChoice, StageGroup, dataset_option, say, say_next, work_option
from cache.common.errors import MrrnError
from cache.common.workspace import Workspace
from extract.settings import OneTimeOptions, RequestedSettings, flag_of


def _options_of(settings: type, *names: str) -> Callable[[Any], Any]:
    """A decorator: an option for each field of a dataclass of settings, or for those of these names.

    What is not given is None, or False.
    """
    chosen = [each for each in fields(settings) if each.metadata["option"] and (not names or each.name in names)]
    options = [_option(each) for each in reversed(chosen)]
    return lambda command: reduce(lambda inner, option: option(inner), options, command)


def _option(setting: Field[Any]) -> Callable[[Any], Any]:
    parse = setting.metadata["parse"]

    def parsed(_context: click.Context, _parameter: click.Parameter, given: Any) -> Any:
        try:
            return parse(given) if given not in (None, ()) else None
        except (ValueError, MrrnError) as error:
            raise click.BadParameter(str(error)) from error

    return click.option(
        flag_of(setting), setting.name, default=None, callback=parse and parsed, **setting.metadata["option"]
    )


@click.group(cls=StageGroup, invoke_without_command=True, context_settings={"max_content_width": 110})
@work_option
@dataset_option
@_options_of(RequestedSettings)
@_options_of(OneTimeOptions)
@click.pass_context
def main(context: click.Context, workspace: Workspace, dataset: str | None, **options: Any) -> None:
    """Turn the videos of a data set into cached features, once.

    Whatever interrupts it, the same command continues, and options that are not given are those of the cache that is
    there. Several extractors may work on one cache at a time. Ends with exit code 3 if videos failed; they are listed.

    \b
    mrrn extract                                  the demo, or the one before
    mrrn extract --dataset ucf101 --data ~/UCF    UCF-101/, ucfTrainTestlist/
    mrrn extract --dataset mine --data videos/    videos/CLASS/clip.mp4
    mrrn extract --dataset mine --data list.csv   video,label,split1
    """
    if context.invoked_subcommand is None:
        from extract.run import run

        given = {name: value for name, value in options.items() if value is not None}
        one_time = {each.name: given.pop(each.name) for each in fields(OneTimeOptions) if each.name in given}
        context.exit(run(workspace, dataset, given, OneTimeOptions(**one_time)))


@main.command("data")
@click.option(
    "--dataset", type=NameChoice(["ucf101", "hmdb51"]), required=True, help="Which of the published datasets."
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Where it is to lie. [default: data/<dataset>]",
)
def data_command(dataset: str, data: Path | None) -> None:
    """Fetch a published dataset's videos and splits, unpack and count them.

    \b
    ucf101   6.5 GB from www.crcv.ucf.edu, about as much again unpacked
    hmdb51   2.1 GB from serre-lab.clps.brown.edu, about as much again unpacked

    The archives go to FOLDER/archives, are checked against their SHA-256 and may be deleted afterwards. Archives that
    you put there yourself are used. An interrupted run is continued by the same command; folders that are there
    already are only counted. RAR archives are unpacked by libarchive, unrar or unar, whichever is there.
    """
    from extract.datasets.official.prepare import PARTS, prepare

    folder = data or Path("data") / dataset
    complete = prepare(dataset, folder, PARTS[dataset])
    say(f"{folder}: complete, {len(complete.videos):,} videos in {len(complete.classes)} classes")
    say_next(advised("extract", Workspace(Path("work")), dataset=dataset, data=str(folder)), "data")


@main.command("probe")
@click.argument("paths", nargs=-1, required=True, metavar="VIDEO...", type=click.Path(exists=True, path_type=Path))
@click.option("--seconds", type=FiniteRange(min=0.5), default=5.0, show_default=True, help="For each measurement.")
@_options_of(RequestedSettings, "backbone", "device", "precision", "batch_frames", "jobs")
def probe_command(paths: tuple[Path, ...], seconds: float, **given: Any) -> None:
    """Time each installed decoder on your own videos, and say which is fastest and where the time goes.

    VIDEO is a file, or a folder that is searched for videos; 64 of them are drawn. For each decoder: frames a second
    decoded by all workers, for each second of processor time, and in a whole extraction with this device. The network
    has random weights, on which its speed does not depend.

    \b
    mrrn probe data/ucf101
    mrrn probe clip.mp4 --backbone resnet50 --device cpu --seconds 10
    """
    from cache.common.device import find_device
    from extract.probe import measured

    asked = RequestedSettings(weights="random:0", **{name: value for name, value in given.items() if value is not None})
    settings = asked.decided(find_device(asked.device))
    for line in measured(settings, paths, seconds):
        say(line)
