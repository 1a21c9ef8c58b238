"""RAR files through whichever reader is there: the programs unrar or unar, else the library libarchive.

The programs come first: libarchive (3.6) neither checks the members' checksums nor reads RAR 4 archives that are solid.
A program is not trusted with the names: its listing is checked first, and afterwards the files that it made have to be
exactly the listed ones.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cache.errors import DatasetError, UnsafePathError
from extract.fetch import libarchive
from extract.fetch.unpack import Kind, UnreadableArchiveError, check_member, renew, write_members
from extract.sources.paths import first_few

INSTALL = (
    "install one of them (Debian, Ubuntu: `apt install unar`; Fedora: `dnf install unar`; macOS: `brew install unar`) "
    "and run the command again"
)

Listing = list[tuple[str, Kind]]


@dataclass(frozen=True)
class Program:
    """A program that unpacks RAR files."""

    name: str
    list_command: tuple[str, ...]
    """Prints what the archive holds; the archive's path is appended."""
    parse: Callable[[str], Listing]
    """Of what that prints, names and kinds."""
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
    return [
        (
            entry["XADFileName"],
            "other" if entry.get("XADIsLink") else "folder" if entry.get("XADIsDirectory") else "file",
        )
        for entry in entries
    ]


PROGRAMS = (
    Program("unrar", ("unrar", "lt", "-c-", "-p-", "--"), parse_unrar, ("unrar", "x", "-c-", "-p-", "-o-", "-y", "--")),
    Program("unar", ("lsar", "-json", "-no-recursion"), parse_lsar, ("unar", "-q", "-no-directory", "-no-recursion")),
)


def unpack_rar(archive: Path, into: Path, wrote: Callable[[], None]) -> None:
    """Unpack into the folder `into`, made anew, with the first reader that can; DatasetError where none can."""
    readers: list[Callable[[Path, Path, Callable[[], None]], None]]
    readers = [partial(unpack_with, program) for program in PROGRAMS if program.is_there()]
    if libarchive.library() is not None:
        readers.append(_unpack_with_libarchive)
    failures = []
    for read in readers:
        try:
            read(archive, into, wrote)
            return
        except UnreadableArchiveError as error:
            failures.append(str(error))
    if not failures:
        raise DatasetError(f"{archive}: RAR files need libarchive, unrar or unar, and none of them is here; {INSTALL}")
    raise DatasetError(
        f"{archive} cannot be unpacked: {'; '.join(failures)}. Delete it and fetch it again, or {INSTALL}"
    )


def _unpack_with_libarchive(archive: Path, into: Path, wrote: Callable[[], None]) -> None:
    renew(into)
    write_members(archive, libarchive.rar_members(archive), into, wrote)


def unpack_with(program: Program, archive: Path, into: Path, wrote: Callable[[], None]) -> None:
    """Unpack with one program into the folder `into`, made anew."""
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
            f"{program.name} made other files of {archive} than it listed: {first_few(sorted(links or made ^ listed))}"
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
