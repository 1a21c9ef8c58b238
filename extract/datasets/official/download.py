"""Downloads one archive over HTTPS: continued where it was cut, and checked by its SHA-256."""

import fcntl
import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cache.common.errors import DatasetError
from cache.common.files import fsync_folder
from cache.remote import https

LARGEST_BYTES = 16 << 30
"""No archive has more: UCF-101's, the largest, has 7 GB. A server that sends on and on fills no disk."""


@dataclass(frozen=True)
class Archive:
    """A file to download."""

    url: str
    sha256: str

    @property
    def name(self) -> str:
        """Its file name: the last part of the address."""
        return self.url.rpartition("/")[2]


def fetch(archive: Archive, folder: Path) -> Path:
    """The archive's file in `folder`, downloaded unless it is there; its SHA-256 is checked either way.

    An incomplete download is kept as `<name>.part`, and the next call continues it. Raises DatasetError if the download
    fails, or the SHA-256 differs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / archive.name
    if not file.exists():
        part = folder / f"{archive.name}.part"
        with part.open("ab") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DatasetError(f"another process is fetching {part}; wait for it, or stop it") from None
            _fill(archive, held, file)
            os.fsync(held.fileno())
            _check(archive, part, "what came is deleted; run the command again", delete=True)
            part.rename(file)
            fsync_folder(folder)
    else:
        _check(archive, file, "delete it, or put the published archive there, and run the command again")
    return file


def _fill(archive: Archive, part: BinaryIO, file: Path) -> None:
    """Append to `part` until the server has nothing more. Raises DatasetError if that fails."""
    have, free = part.tell(), shutil.disk_usage(file.parent).free
    try:
        https.fetch(archive.url, part, min(LARGEST_BYTES, have + free), resume=True, title=archive.name)
    except https.LengthError as error:
        if error.num_bytes <= LARGEST_BYTES:
            raise DatasetError(
                f"{archive.url} has {error.found}, {have:,} of them are here, and {file.parent} has room for {free:,}; "
                "make room"
            ) from error
        if not error.announced:
            part.truncate(0)
        raise DatasetError(
            f"{archive.url} has {error.found}; no published archive has {LARGEST_BYTES >> 30} GiB. "
            + ("" if error.announced else "What came is deleted. ")
            + "Look at the address, or get the archive any other way"
        ) from error
    except https.FetchError as error:
        raise DatasetError(
            f"{error}. {part.tell():,} bytes are here; run the command again to go on, or get {archive.name} any other "
            f"way and put it at {file} (its SHA-256 is {archive.sha256})"
        ) from error


def _check(archive: Archive, file: Path, advice: str, *, delete: bool = False) -> None:
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != archive.sha256:
        size = file.stat().st_size
        if delete:
            file.unlink()
        raise DatasetError(
            f"{file} ({size:,} bytes) has SHA-256 {found}; {archive.name} as published has {archive.sha256}: {advice}"
        )
