"""A model of a disk under a power cut: what may be there when only what was synced has to be.

Fed with a recorded trace of changes (faults/shim.c), it makes the folders that a crash at any moment could leave.
The model is the strict one of POSIX: a write is safe after fsync of its file; a name that was made, moved or removed is
safe after fsync of its folder; everything else may be there, not at all, or in part, in any combination. Renames are
atomic. Files of shared memory (SQLite's -shm) are not on the disk.
"""

import json
import os
import random
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[2]
SECTOR_BYTES = 512

_HEAD = struct.Struct("<6q")


@dataclass(frozen=True)
class Change:
    """One record of a trace."""

    kind: str
    """c(reate), w(rite), t(runcate), s(ync), r(ename), u(nlink), m(kdir), or A: something was acknowledged."""
    inode: int
    offset: int
    """Of a write; for a truncation the new length."""
    path: PurePosixPath
    other: PurePosixPath | None
    data: bytes
    site: str = ""
    """Of a sync: which line of our code asked for it; empty where SQLite did."""


def read_trace(file: Path) -> list[Change]:
    """All records of a trace, but those about shared memory."""
    return [change for change in _records(file.read_bytes()) if not change.path.name.endswith("-shm")]


def _records(content: bytes) -> Iterator[Change]:
    position, site = 0, ""
    while position < len(content):
        kind, inode, offset, *lengths = _HEAD.unpack_from(content, position)
        position += _HEAD.size
        if chr(kind) != "w":
            lengths[2] = 0
        parts = []
        for length in lengths:
            parts.append(content[position : position + length])
            position += length
        if kind == ord("L"):
            site = parts[0].decode()
            continue
        assert not site or chr(kind) == "s", f"{site} did not sync"
        other = PurePosixPath(parts[1].decode()) if parts[1] else None
        yield Change(chr(kind), inode, offset, PurePosixPath(parts[0].decode()), other, parts[2], site)
        site = ""


def acknowledge(trace: Path, what: dict[str, object]) -> None:
    """Put a mark into a trace: `what` was promised at this moment."""
    _mark(trace, "A", json.dumps(what))


def note_sites(trace: Path) -> None:
    """From now on, in this process and its forks, put the line that asks for a sync into the trace before each one."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        frame = sys._getframe(1)
        while frame.f_code.co_name == "fsync_folder":
            assert frame.f_back is not None
            frame = frame.f_back
        _mark(trace, "L", f"{Path(frame.f_code.co_filename).relative_to(ROOT)}:{frame.f_lineno}")
        real(descriptor)

    os.fsync = fsync


def _mark(trace: Path, kind: str, text: str) -> None:
    with trace.open("ab") as file:
        file.write(_HEAD.pack(ord(kind), 0, 0, len(text.encode()), 0, 0) + text.encode())


@dataclass
class _File:
    safe: bytearray = field(default_factory=bytearray)
    loose: list[Change] = field(default_factory=list)
    """Changes since the last sync, in order."""


@dataclass
class _Folder:
    names: dict[str, object] = field(default_factory=dict)
    """What the running program sees: files and folders by name."""
    safe: dict[str, object] = field(default_factory=dict)
    loose: list[tuple[str | None, str | None, object]] = field(default_factory=list)
    """Changes of names since the last sync: name that goes, name that comes, and what it names."""


class Disk:
    """What a program sees and what is safe, after some changes below `root`."""

    def __init__(self, root: PurePosixPath) -> None:
        self.root = root
        self.top = _Folder()

    def _folder(self, path: PurePosixPath) -> _Folder:
        folder = self.top
        for name in path.relative_to(self.root).parts:
            found = folder.names[name]
            assert isinstance(found, _Folder)
            folder = found
        return folder

    def apply(self, change: Change) -> None:
        """Do what the program did."""
        if change.kind == "s":
            self._sync(change.path)
            return
        folder, name = self._folder(change.path.parent), change.path.name
        if change.kind in "cm":
            self._rename(folder, None, name, _File() if change.kind == "c" else _Folder())
        elif change.kind == "u":
            self._rename(folder, name, None, folder.names[name])
        elif change.kind == "r":
            assert change.other is not None
            assert change.other.parent == change.path.parent, "renames between folders are not modelled"
            self._rename(folder, name, change.other.name, folder.names[name])
        else:
            file = folder.names[name]
            assert isinstance(file, _File)
            file.loose.append(change)

    @staticmethod
    def _rename(folder: _Folder, goes: str | None, comes: str | None, what: object) -> None:
        folder.loose.append((goes, comes, what))
        _apply_name(folder.names, goes, comes, what)

    def _sync(self, path: PurePosixPath) -> None:
        what: object = self.top if path == self.root else self._folder(path.parent).names[path.name]
        if isinstance(what, _Folder):
            what.safe, what.loose = dict(what.names), []
        else:
            assert isinstance(what, _File)
            for change in what.loose:
                _apply_data(what.safe, change)
            what.loose = []

    def crash(self, target: Path, chance: random.Random) -> None:
        """Write one of the states that a power cut could leave into the folder `target`."""
        survives = _fates(chance)
        _write_folder(self.top, target, chance, survives)


def _fates(chance: random.Random) -> Callable[[], bool]:
    """How likely an unsynced change survives in this crash: seldom, often, never, always."""
    likelihood = chance.choice([0.0, 0.1, 0.5, 0.5, 0.9, 1.0])
    return lambda: chance.random() < likelihood


def _apply_name(names: dict[str, object], goes: str | None, comes: str | None, what: object) -> None:
    if goes is not None:
        names.pop(goes, None)
    if comes is not None:
        names[comes] = what


def _apply_data(content: bytearray, change: Change) -> None:
    if change.kind == "t":
        del content[change.offset :]
        content.extend(bytes(change.offset - len(content)))
        return
    end = change.offset + len(change.data)
    content.extend(bytes(max(0, end - len(content))))
    content[change.offset : end] = change.data


def _write_folder(folder: _Folder, target: Path, chance: random.Random, survives: Callable[[], bool]) -> None:
    target.mkdir(exist_ok=True)
    names = dict(folder.safe)
    for goes, comes, what in folder.loose:
        if survives():
            _apply_name(names, goes, comes, what)
    for name, what in names.items():
        if isinstance(what, _Folder):
            _write_folder(what, target / name, chance, survives)
        else:
            assert isinstance(what, _File)
            (target / name).write_bytes(_crashed_content(what, chance, survives))


def _crashed_content(file: _File, chance: random.Random, survives: Callable[[], bool]) -> bytes:
    content = bytearray(file.safe)
    for change in file.loose:
        if not survives():
            continue
        if change.kind == "w" and chance.random() < 0.3:
            # Torn: the length may grow before the bytes come, and some sectors come and others do not.
            end = change.offset + len(change.data)
            content.extend(bytes(max(0, end - len(content))))
            for start in range(0, len(change.data), SECTOR_BYTES):
                if chance.random() < 0.5:
                    piece = change.data[start : start + SECTOR_BYTES]
                    content[change.offset + start : change.offset + start + len(piece)] = piece
        else:
            _apply_data(content, change)
    return bytes(content)
