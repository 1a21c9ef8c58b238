"""An archive into an empty folder: plain files and folders below it, nothing else, whatever the archive says."""

import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from cache.errors import DatasetError, UnsafePathError
from extract.sources.paths import check_path

Kind = Literal["file", "folder", "other"]
"""Links, devices and the like are `other`, and refused."""

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Member:
    """What an archive holds under one name."""

    name: str
    kind: Kind
    blocks: Callable[[], Iterable[bytes]]
    """Its content, to be read before the next member is asked for."""


class UnreadableArchiveError(DatasetError):
    """The archive is damaged, or of a kind that this reader does not know."""


def check_member(archive: Path, name: str, kind: Kind) -> str:
    """The member's path below the folder it is unpacked to; UnsafePathError for names that leave it and for links."""
    if kind == "other":
        raise UnsafePathError(f"{archive}: member {name!r} is neither a file nor a folder, but a link or the like")
    return check_path(name.rstrip("/") if kind == "folder" else name, str(archive))


def write_members(archive: Path, members: Iterable[Member], into: Path, wrote: Callable[[], None]) -> None:
    """Write every member below `into`, which is empty; calls `wrote` after each file."""
    for member in members:
        path = into / check_member(archive, member.name, member.kind)
        try:
            if member.kind == "folder":
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                for block in member.blocks():
                    file.write(block)
        except (FileExistsError, NotADirectoryError) as error:
            raise UnsafePathError(f"{archive}: member {member.name!r} stands where another does") from error
        wrote()


def zip_members(archive: Path) -> Iterator[Member]:
    """The members of a zip file."""
    with _zip_faults(archive), zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            yield Member(info.filename, _zip_kind(info), partial(_zip_blocks, archive, opened, info))


@contextmanager
def _zip_faults(archive: Path) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise UnreadableArchiveError(f"{archive} cannot be unpacked: {error}; delete it and fetch it again") from error


def _zip_kind(info: zipfile.ZipInfo) -> Kind:
    unix_type = (info.external_attr >> 16) & 0o170000
    if unix_type not in (0, 0o100000, 0o040000):
        return "other"
    return "folder" if info.is_dir() else "file"


def _zip_blocks(archive: Path, opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    with _zip_faults(archive), opened.open(info) as content:
        while block := content.read(_BLOCK_BYTES):
            yield block


def unpack(archive: Path, into: Path, wrote: Callable[[], None] = lambda: None) -> None:
    """Unpack a .zip or .rar file into the folder `into`, which is made anew; calls `wrote` after each file.

    Refused, with the member's name: absolute names, `..`, links, special files, names given twice.
    """
    if archive.suffix.lower() == ".rar":
        from extract.fetch import rar

        rar.unpack_rar(archive, into, wrote)
    elif archive.suffix.lower() == ".zip":
        renew(into)
        write_members(archive, zip_members(archive), into, wrote)
    else:
        raise UnreadableArchiveError(f"{archive} is neither a .zip nor a .rar file")


def renew(folder: Path) -> None:
    """Make `folder` empty, whatever was in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
