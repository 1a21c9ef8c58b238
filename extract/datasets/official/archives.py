"""Unpacks a .zip or .rar archive into an empty folder: plain files and folders, never outside of it, never a link.

Zip files are read by Python. RAR files are read by the first of these that can: the programs unrar and unar, and the
system's libarchive through ctypes. The programs come first, because libarchive (3.6) neither checks the members'
checksums nor reads RAR 4 archives that are solid. With zip and libarchive every file is written here, under a name that
was checked. A program writes by itself: so its listing is checked first, and afterwards the files that it made have to
be exactly the listed ones.
"""

import ctypes
import ctypes.util
import json
import lzma
import os
import re
import shutil
import stat
import subprocess
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Literal

from cache.common.errors import DatasetError, UnsafePathError
from cache.common.text import some
from extract.datasets.paths import check_path

Kind = Literal["file", "folder", "other"]
"""Links, devices and the like are `other`, and refused."""

Listing = list[tuple[str, Kind]]
"""Names and kinds of an archive's members."""

INSTALL = (
    "install one of them (Debian, Ubuntu: `apt install unar`; Fedora: `dnf install unar`; macOS: `brew install unar`) "
    "and run the command again"
)

_BLOCK_BYTES = 1 << 20
_KINDS: dict[int, Kind] = {stat.S_IFREG: "file", stat.S_IFDIR: "folder"}


@dataclass(frozen=True)
class Member:
    """One member of an archive."""

    name: str
    kind: Kind
    blocks: Callable[[], Iterable[bytes]]
    """Its content, to be read before the next member is asked for."""


class UnreadableArchiveError(DatasetError):
    """The archive is damaged, or of a kind that this reader does not know."""


def unpack(archive: Path, into: Path, wrote: Callable[[], None] = lambda: None) -> None:
    """Unpack a .zip or .rar file into the folder `into`, which is made anew. Calls `wrote` after each file.

    Raises UnsafePathError, with the member's name, for absolute names, `..`, links, special files and repeated names.
    """
    suffix = archive.suffix.lower()
    if suffix == ".rar":
        _unpack_rar(archive, into, wrote)
        return
    if suffix != ".zip":
        raise UnreadableArchiveError(f"{archive} is neither a .zip nor a .rar file")
    try:
        write_members(archive, zip_members(archive), into, wrote)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError) as error:
        raise UnreadableArchiveError(f"{archive} cannot be unpacked: {error}; delete it and fetch it again") from error


def _unpack_rar(archive: Path, into: Path, wrote: Callable[[], None]) -> None:
    """Unpack with the first reader that can. Raises DatasetError if none can."""
    readers: list[Callable[[Path, Callable[[], None]], None]]
    readers = [partial(unpack_with, program, archive) for program in PROGRAMS if program.is_there()]
    if library() is not None:
        readers.append(partial(write_members, archive, rar_members(archive)))
    failures = []
    for read in readers:
        try:
            read(into, wrote)
            return
        except UnreadableArchiveError as error:
            failures.append(str(error))
    if not failures:
        raise DatasetError(f"{archive}: RAR files need libarchive, unrar or unar, and none of them is here; {INSTALL}")
    raise DatasetError(
        f"{archive} cannot be unpacked: {'; '.join(failures)}. Delete it and fetch it again, or {INSTALL}"
    )


def renew(folder: Path) -> None:
    """Make `folder` empty, whatever was in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def check_member(archive: Path, name: str, kind: Kind) -> str:
    """The member's path below the folder it is unpacked to. Raises UnsafePathError if it leaves that, or is a link."""
    if kind == "other":
        raise UnsafePathError(f"{archive}: member {name!r} is neither a file nor a folder, but a link or the like")
    return check_path(name.rstrip("/") if kind == "folder" else name, str(archive))


def write_members(archive: Path, members: Iterable[Member], into: Path, wrote: Callable[[], None]) -> None:
    """Write every member below `into`, made anew. Calls `wrote` after each file."""
    renew(into)
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
            raise UnsafePathError(f"{archive}: member {member.name!r} has the place of another") from error
        wrote()


# --- zip ---


def zip_members(archive: Path) -> Iterator[Member]:
    """The members of a zip file."""
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            unix_type = stat.S_IFMT(info.external_attr >> 16)  # 0 if the archive was made on another system
            special = unix_type not in (0, *_KINDS)
            kind: Kind = "other" if special else "folder" if info.is_dir() else "file"
            yield Member(info.filename, kind, partial(_zip_blocks, opened, info))


def _zip_blocks(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    with opened.open(info) as content:
        while block := content.read(_BLOCK_BYTES):
            yield block


# --- RAR, by libarchive (archive.h and archive_entry.h, stable since libarchive 3.0) ---

_EOF, _OK = 1, 0

_SIGNATURES: dict[str, tuple[type | None, list[type]]] = {
    "archive_read_new": (ctypes.c_void_p, []),
    "archive_read_support_format_rar": (ctypes.c_int, [ctypes.c_void_p]),
    "archive_read_support_format_rar5": (ctypes.c_int, [ctypes.c_void_p]),
    "archive_read_open_filename": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]),
    "archive_read_next_header": (ctypes.c_int, [ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)]),
    "archive_read_data": (ctypes.c_ssize_t, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]),
    "archive_read_free": (ctypes.c_int, [ctypes.c_void_p]),
    "archive_error_string": (ctypes.c_char_p, [ctypes.c_void_p]),
    "archive_entry_pathname_utf8": (ctypes.c_char_p, [ctypes.c_void_p]),
    "archive_entry_pathname": (ctypes.c_char_p, [ctypes.c_void_p]),
    "archive_entry_filetype": (ctypes.c_uint, [ctypes.c_void_p]),
    "archive_entry_hardlink": (ctypes.c_char_p, [ctypes.c_void_p]),
}


@cache
def library() -> ctypes.CDLL | None:
    """libarchive with its signatures declared; None if the system has none that reads both RAR formats."""
    for name in filter(None, (ctypes.util.find_library("archive"), "libarchive.so.13", "libarchive.dylib")):
        with suppress(OSError, AttributeError):
            found = ctypes.CDLL(name)
            for function, (result, arguments) in _SIGNATURES.items():
                getattr(found, function).restype = result
                getattr(found, function).argtypes = arguments
            return found
    return None


def rar_members(archive: Path) -> Iterator[Member]:
    """The members of a RAR file, by libarchive. Raises UnreadableArchiveError if it cannot read on."""
    lib = library()
    assert lib is not None
    handle = lib.archive_read_new()
    try:
        lib.archive_read_support_format_rar(handle)
        lib.archive_read_support_format_rar5(handle)
        _check(lib, handle, archive, lib.archive_read_open_filename(handle, os.fsencode(archive), _BLOCK_BYTES))
        entry = ctypes.c_void_p()
        while (code := lib.archive_read_next_header(handle, ctypes.byref(entry))) != _EOF:
            _check(lib, handle, archive, code)
            # Names outside the locale's characters come as bytes, and those are UTF-8 or refused later.
            name: bytes = lib.archive_entry_pathname_utf8(entry) or lib.archive_entry_pathname(entry) or b""
            kind = _KINDS.get(stat.S_IFMT(lib.archive_entry_filetype(entry)), "other")
            yield Member(
                name.decode(errors="surrogateescape"),
                "other" if lib.archive_entry_hardlink(entry) else kind,
                partial(_blocks, lib, handle, archive),
            )
    finally:
        lib.archive_read_free(handle)


def _blocks(lib: ctypes.CDLL, handle: int, archive: Path) -> Iterator[bytes]:
    buffer = ctypes.create_string_buffer(_BLOCK_BYTES)
    while (count := lib.archive_read_data(handle, buffer, _BLOCK_BYTES)) != 0:
        _check(lib, handle, archive, min(count, 0))
        yield buffer.raw[:count]


def _check(lib: ctypes.CDLL, handle: int, archive: Path, code: int) -> None:
    if code != _OK:
        text = lib.archive_error_string(handle) or b"no reason given"
        raise UnreadableArchiveError(f"libarchive cannot read {archive}: {text.decode(errors='replace')}")


# --- RAR, by a program ---


@dataclass(frozen=True)
class Program:
    """A program that unpacks RAR files."""

    name: str
    list_command: tuple[str, ...]
    """Prints what the archive holds; the archive's path is appended."""
    parse: Callable[[str], Listing]
    """Parses what that prints."""
    unpack_command: tuple[str, ...]
    """Unpacks into the working folder; the archive's path is appended."""

    def is_there(self) -> bool:
        """Whether both commands can be run."""
        return all(shutil.which(command[0]) for command in (self.list_command, self.unpack_command))


def parse_unrar(text: str) -> Listing:
    """`unrar lt`: blocks of `Name: …` and `Type: File|Directory|…` lines."""
    pairs = re.findall(r"^ *Name: (.*)\n *Type: (.*)$", text, flags=re.MULTILINE)
    kinds: dict[str, Kind] = {"File": "file", "Directory": "folder"}
    return [(name, kinds.get(kind, "other")) for name, kind in pairs]


def parse_lsar(text: str) -> Listing:
    """`lsar -json`."""
    entries = json.loads(text)["lsarContents"]
    kinds: list[Kind] = [
        "other" if entry.get("XADIsLink") else "folder" if entry.get("XADIsDirectory") else "file" for entry in entries
    ]
    return list(zip((entry["XADFileName"] for entry in entries), kinds, strict=True))


PROGRAMS = (
    Program("unrar", ("unrar", "lt", "-c-", "-p-", "--"), parse_unrar, ("unrar", "x", "-c-", "-p-", "-o-", "-y", "--")),
    Program("unar", ("lsar", "-json", "-no-recursion"), parse_lsar, ("unar", "-q", "-no-directory", "-no-recursion")),
)


def unpack_with(program: Program, archive: Path, into: Path, wrote: Callable[[], None]) -> None:
    """Unpack with one program into the folder `into`, made anew. Calls `wrote` for each file, at the end."""
    listing = program.parse(_run(program, program.list_command, archive, Path.cwd()))
    listed = {check_member(archive, name, kind) for name, kind in listing if kind != "folder"}
    if len(listed) < sum(kind != "folder" for _, kind in listing):
        raise UnsafePathError(f"{archive}: two of its members have the same name")
    renew(into)
    _run(program, program.unpack_command, archive, into)
    made = {str(path.relative_to(into)) for path in into.rglob("*") if path.is_symlink() or not path.is_dir()}
    links = [name for name in made if (into / name).is_symlink() or not (into / name).is_file()]
    if links or made != listed:
        raise UnreadableArchiveError(
            f"{program.name} made other files of {archive} than it listed: {some(sorted(links or made ^ listed))}"
        )
    for _ in made:
        wrote()


def _run(program: Program, command: tuple[str, ...], archive: Path, folder: Path) -> str:
    done = subprocess.run(
        [*command, str(archive.resolve())],
        cwd=folder,
        env={**os.environ, "LC_ALL": "C.UTF-8"},  # unrar cannot write other names than the locale's
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        lines = (done.stdout + b"\n" + done.stderr).decode(errors="replace").splitlines()
        said = [line.strip() for line in lines if any(map(str.isalpha, line))]
        why = said[-1] if said else f"exit code {done.returncode}"
        raise UnreadableArchiveError(f"{program.name} cannot read {archive}: {why}")
    return done.stdout.decode(errors="surrogateescape")
