"""Prepares a published dataset in a data folder: downloads and unpacks its archives, and counts the videos."""

import itertools
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from cache.common.errors import DatasetError
from cache.common.files import fsync_folder
from cache.common.progress import progress
from cache.common.text import some
from cache.dataset import Dataset
from extract.datasets import hmdb51, load_dataset, ucf101
from extract.datasets.official.archives import renew, unpack
from extract.datasets.official.download import Archive, fetch


@dataclass(frozen=True)
class Part:
    """One folder of a dataset, and its archive."""

    folder: str
    archive: Archive
    files: int
    """Number of files, for the progress bar."""
    holds_archives: bool = False
    """Whether the archive holds further archives, one for each class, which hold the folder's content."""


_UCF = "https://www.crcv.ucf.edu/data/UCF101"
_HMDB = "https://serre-lab.clps.brown.edu/wp-content/uploads/2013/10"

# The SHA-256 of all four are those of torchvision's data sets (prototype/datasets/_builtin/{ucf101,hmdb51}.py);
# that of UCF-101's lists is in TensorFlow Datasets' url_checksums too.
PARTS: Mapping[str, tuple[Part, ...]] = {
    "ucf101": (
        Part(
            ucf101.LISTS,
            Archive(
                f"{_UCF}/UCF101TrainTestSplits-RecognitionTask.zip",
                "5c0d1a53b8ed364a2ac830a73f405e51bece7d98ce1254fd19ed4a36b224bd27",
            ),
            files=7,
        ),
        Part(
            ucf101.VIDEOS,
            Archive(f"{_UCF}/UCF101.rar", "ca8dfadb4c891cb11316f94d52b6b0ac2a11994e67a0cae227180cd160bd8e55"),
            files=13_320,
        ),
    ),
    "hmdb51": (
        Part(
            hmdb51.LISTS,
            Archive(
                f"{_HMDB}/test_train_splits.rar", "229c94f845720d01eb3946d39f39292ea962d50a18136484aa47c1eba251d2b7"
            ),
            files=153,
        ),
        Part(
            hmdb51.VIDEOS,
            Archive(f"{_HMDB}/hmdb51_org.rar", "9e714a0d8b76104d76e932764a7ca636f929fff66279cda3f2e326fa912a328e"),
            files=6_766,
            holds_archives=True,
        ),
    ),
}


def prepare(name: str, data: Path, parts: tuple[Part, ...]) -> Dataset:
    """The complete dataset in `data`: missing folders are downloaded and unpacked, then everything is counted.

    Existing folders are left as they are. After an interruption at any moment, the next call goes on.
    """
    for part in parts:
        if (data / part.folder).exists():
            click.echo(f"{data / part.folder} is there")
        else:
            file = fetch(part.archive, data / "archives")
            _put_in_place(part, file, data)
    try:
        dataset, _ = load_dataset(name, data, subset=False, work=data)
    except DatasetError as error:
        folders = " or ".join(str(data / part.folder) for part in parts)
        raise DatasetError(f"{error}\nTo unpack it again, move {folders} away and run the command again") from error
    return dataset


def _put_in_place(part: Part, archive: Path, data: Path) -> None:
    """Unpack into a staging folder, then rename: the folder is complete or missing, even after a power cut."""
    staged = data / f".unpacking-{part.folder}"
    count = itertools.count(1)
    with progress(f"unpacking {archive.name}", part.files, "files") as shown:
        if part.holds_archives:
            _unpack_nested(archive, staged, staged / part.folder, lambda: shown.update(next(count)))
        else:
            unpack(archive, staged, lambda: shown.update(next(count)))
    if not (staged / part.folder).is_dir():
        found = some(sorted(path.name for path in staged.iterdir()))
        raise DatasetError(f"{archive} has no folder {part.folder}; it has {found or 'nothing'}")
    os.sync()
    (staged / part.folder).rename(data / part.folder)
    fsync_folder(data)
    shutil.rmtree(staged)


def _unpack_nested(archive: Path, staged: Path, into: Path, wrote: Callable[[], None]) -> None:
    """Unpack an archive of RAR archives; their content is merged in `into`."""
    renew(staged)
    unpack(archive, staged / "archives")
    into.mkdir()
    for inner in sorted((staged / "archives").rglob("*.rar")):
        unpack(inner, staged / "one", wrote)
        for folder in (staged / "one").iterdir():
            if (into / folder.name).exists():
                raise DatasetError(f"{archive}: {inner.name} holds {folder.name!r}, as another of its archives does")
            folder.rename(into / folder.name)
        inner.unlink()
