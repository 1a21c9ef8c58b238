"""`python -m extract data`: fetch, unpack and count a published dataset."""

from pathlib import Path

import click


@click.command("data")
@click.option(
    "--dataset", type=click.Choice(["ucf101", "hmdb51"]), required=True, help="Which of the published datasets."
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
    click.echo(f"{folder}: complete, {len(complete.videos):,} videos in {len(complete.classes)} classes")
