"""The objects of a cache in a folder of this machine, from which a web server can serve them."""

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cache.common.errors import CacheError
from cache.common.files import discard, fsync_folder, make_folder_durably, plain_files, read_plain, write_bytes_durably
from cache.remote.client import Location, Objects
from cache.remote.lease import DriverLease


class FolderObjects(Objects):
    """As in a store, for the one process that holds the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.location = Location("folder", "folder")
        self.requests = Counter()

    def __reduce__(self) -> tuple[Any, ...]:
        return (FolderObjects, (self.folder,))

    def read(self, name: str, max_bytes: int) -> tuple[bytes, str] | None:
        """As in a store; it is this machine's own, so its size is no danger."""
        try:
            return read_plain(self.folder / name), ""
        except FileNotFoundError:
            return None

    def download(self, name: str, path: Path, num_bytes: int) -> None:
        """Another name for the same file, or a copy where the disk cannot do that."""
        _link(self.folder / name, path)

    def names(self, folder: str, after: str = "") -> Iterator[tuple[str, int]]:
        """As in a store."""
        if (self.folder / folder).is_dir():
            files = ((str(path.relative_to(self.folder)), path) for path in plain_files(self.folder / folder))
            for name, path in sorted(files):
                if name > after and not path.name.startswith(".tmp-"):
                    yield name, path.lstat().st_size

    def write(self, name: str, content: bytes | Path) -> None:
        """On disk when it returns."""
        path = self.folder / name
        if isinstance(content, bytes):
            write_bytes_durably(path, content)
            return
        make_folder_durably(path.parent)
        temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
        discard(temporary)
        _link(content, temporary)
        temporary.replace(path)
        fsync_folder(path.parent)

    def create(self, name: str, content: bytes) -> bool:
        """As in a store."""
        found = self.read(name, len(content))
        if found is None:
            self.write(name, content)
        return found is None or found[0] == content

    def replace(self, name: str, content: bytes, tag: str) -> bool:
        raise CacheError("nothing that was published is replaced")

    def delete(self, names: list[str]) -> None:
        raise CacheError("nothing that was published is deleted")


class NoLease(DriverLease):
    """For a folder that this process has locked."""

    def hold(self) -> None:
        """It is held."""


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        with target.open("rb") as copied:
            os.fsync(copied.fileno())
