"""Small files written so that a reader finds the old content or the new, never half, also after a power cut."""

import json
import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache.errors import DamageError


def fsync_folder(folder: Path) -> None:
    """Make the folder's entries (creations, renames, removals) durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder_durably(folder: Path) -> None:
    """Create `folder` and what is missing above it, each entry on disk when this returns."""
    if not folder.is_dir():
        make_folder_durably(folder.parent)
        folder.mkdir(exist_ok=True)
        fsync_folder(folder.parent)


def write_bytes_durably(path: Path, content: bytes) -> None:
    """Replace `path` by `content`: temporary file beside it, fsync, rename, fsync of the folder."""
    make_folder_durably(path.parent)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)


def write_tree_durably(path: Path, files: Mapping[str, bytes]) -> None:
    """Write new files below `path`, or one file at `path` where its name is empty; all on disk when this returns.

    The entry of `path` itself in its folder is the caller's to make durable, together with the rename that follows.
    """
    folders = {path} if "" not in files else set()
    for name, content in files.items():
        file = path / name
        if name:
            file.parent.mkdir(parents=True, exist_ok=True)
            folders |= {folder for folder in file.parents if folder.is_relative_to(path)}
        with file.open("xb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
    for folder in folders:
        fsync_folder(folder)


def write_json_durably(path: Path, value: Any) -> None:
    """Replace `path` by `value` as indented UTF-8 JSON with a closing newline; NaN and infinities are refused."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes_durably(path, text.encode())


class PositionedFile:
    """A plain file read at given positions: no shared cursor, so any thread and any forked child can use it.

    Closed when the last reference to it goes.
    """

    def __init__(self, path: Path) -> None:
        """OSError where `path` is missing or a link (links could lead out of the folder that is being read)."""
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)
        self.num_bytes = os.fstat(self._descriptor).st_size

    def read_into(self, out: memoryview, position: int) -> None:
        """Fill `out`, a view of bytes, from `position` on; DamageError where the file ends before."""
        while out:
            count = os.preadv(self._descriptor, [out], position)
            if count == 0:
                raise DamageError(f"{self.path} ends early: something shortened it since it was opened")
            out, position = out[count:], position + count
