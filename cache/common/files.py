"""Files: written so that a reader finds the old content or the new, also after a power cut; read without following
links.

JSON files carry a seal, a hash over their own content. `from_json` turns what they hold into typed values.
"""

import contextlib
import ctypes
import errno
import json
import mmap
import os
import re
import shutil
import stat
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import xxhash

from cache.common.errors import DamageError, UnreadableError

JSON_BYTES = 64 << 20
"""Bytes of a JSON file at most; a report on 13,320 videos has less than one."""

PLAIN_BYTES = 1 << 30
"""Bytes of a cache's descriptions at most; the data set of a million videos has a fifth."""

ADDED_LATER = {"added_later": True}
"""Metadata of a dataclass field that files of earlier versions do not have."""

_T = TypeVar("_T")
_SOMETHING_ELSE = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.ENODEV),
    errno.EFBIG,  # of reading: `read_plain`
}
"""Errors by which it is known that a file's place has nothing, or a link, a folder, a device, or far too much."""
_NO_MEMORY = ("start new thread", "can't allocate", "out of memory", "unable to allocate", "memory allocation failed")
"""Words of errors that stand for a lack of memory: Python's for a thread, torch's for host and device, HDF5's."""
_HERE, _EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of renameat2(2)."""
_SEAL = re.compile(rb',\n  "seal": "(?P<digest>[0-9a-f]{32})"\n\}\n\Z')


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
    # An earlier process with this id may have left it, or somebody put a link there; "x" does not follow links.
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)


def write_tree_durably(path: Path, files: Mapping[str, bytes]) -> None:
    """Write new files below `path`, or one file at `path` if its name is empty; all on disk when this returns.

    The caller makes the entry of `path` in its folder durable, together with the rename that follows.
    """
    folders = {folder for name in files if name for folder in (path / name).parents if folder.is_relative_to(path)}
    # Without parents: if another process removed `path` meanwhile, it must not come back.
    for folder in sorted(folders):
        folder.mkdir()
    for name, content in files.items():
        with (path / name).open("xb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
    for folder in folders:
        fsync_folder(folder)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it; nothing happens if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def discard(path: Path) -> None:
    """As `remove`, but leaves what the disk refuses to remove: the next extraction clears it up."""
    with contextlib.suppress(OSError):
        remove(path)


def discard_leftovers(folder: Path) -> None:
    """Remove what `write_bytes_durably` left in `folder` in processes that were killed."""
    for path in folder.glob(".tmp-*-*"):
        try:
            os.kill(int(path.name.split("-")[1]), 0)
        except ProcessLookupError:
            discard(path)
        except (ValueError, OverflowError, PermissionError):
            continue


def replace_folder(path: Path, temporary: Path) -> None:
    """Give the folder `temporary` the name `path`, durably, and remove the folder that had it.

    One step, so that `path` is always one of the two; of two steps where the file system cannot exchange names.
    """
    try:
        _exchange(temporary, path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
            raise
        older = temporary.with_name(f"{temporary.name}-older")
        remove(older)
        with contextlib.suppress(FileNotFoundError):
            path.rename(older)
        try:
            temporary.rename(path)
        except OSError:
            with contextlib.suppress(FileNotFoundError):
                older.rename(path)
            raise
        discard(older)
    fsync_folder(path.parent)
    discard(temporary)


def _exchange(first: Path, second: Path) -> None:
    """Exchange two names in one step, as Linux can on most file systems. Raises `OSError` where it cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise OSError(errno.ENOSYS, "names cannot be exchanged")
    if libc.renameat2(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(first), None, str(second))


def write_json_durably(path: Path, value: Any) -> None:
    """Replace `path` by `value` as indented UTF-8 JSON with a closing newline; NaN and infinities are refused."""
    write_bytes_durably(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def sealed_json(value: dict[str, Any]) -> bytes:
    """Returns indented UTF-8 JSON with a last key `seal`: xxh3_128 over everything before it."""
    body = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False).removesuffix("\n}").encode()
    return body + f',\n  "seal": "{xxhash.xxh3_128_hexdigest(body)}"\n}}\n'.encode()


def unsealed_json(content: bytes, where: str) -> dict[str, Any]:
    """The inverse of `sealed_json`, without the seal. Raises `DamageError` naming `where` if the seal does not fit."""
    seal = _SEAL.search(content)
    if seal is None or not _fits(content, seal):
        raise DamageError(f"{where} is not as it was written: it was edited, cut short or damaged")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DamageError(f"{where} is not JSON: {error}") from error
    del value["seal"]
    return value


def _fits(content: bytes, seal: "re.Match[bytes]") -> bool:
    return xxhash.xxh3_128_hexdigest(memoryview(content)[: seal.start()]).encode() == seal["digest"]


def write_sealed_json(path: Path, value: dict[str, Any]) -> None:
    """As `write_json_durably`, sealed."""
    write_bytes_durably(path, sealed_json(value))


def read_sealed_json(path: Path) -> dict[str, Any]:
    """The inverse of `write_sealed_json`, without the seal. Raises `DamageError` if the seal does not fit."""
    return unsealed_json(read_plain(path), str(path))


def from_json(value: Any, kind: type[_T], *, exact: bool = True) -> _T:
    """Returns `value`, parsed from JSON, as a `kind`: a dataclass, or a list or tuple of dataclasses.

    Raises `ValueError` with the path of whatever has another type. If `exact`, a dataclass must also have all of its
    keys, but those that are `ADDED_LATER`, and no others. Errors of `__post_init__` that are not a ValueError pass
    unchanged.
    """
    made = msgspec.convert(value, kind, str_keys=True)
    if exact:
        _check_keys(value, made, "$")
    return made


def _check_keys(value: Any, made: Any, path: str) -> None:
    """msgspec ignores keys that a dataclass does not have, and puts defaults for missing ones."""
    if isinstance(value, list):
        for i, (inner, made_inner) in enumerate(zip(value, made, strict=True)):
            if isinstance(inner, dict | list):
                _check_keys(inner, made_inner, f"{path}[{i}]")
    elif known := getattr(made, "__dataclass_fields__", None):
        needed = {name for name, each in known.items() if not each.metadata.get("added_later")}
        if not needed <= value.keys() <= known.keys():
            raise ValueError(f"unknown or missing keys {sorted(value.keys() ^ known.keys())} - at `{path}`")
        for key, inner in value.items():
            if isinstance(inner, dict | list):
                _check_keys(inner, getattr(made, key), f"{path}.{key}")


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that there is no memory left, for data or for a thread's stack."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | OSError | KeyError | ValueError)
        and any(text in str(error) for text in _NO_MEMORY)
    )


def require_memory(num_bytes: int) -> None:
    """Raises `OSError` (ENOMEM) unless so much can be had now, for a library that does not bear it if it cannot."""
    mmap.mmap(-1, num_bytes).close()


def raise_if_unreadable(error: Exception, path: Path) -> None:
    """Raises `UnreadableError` if `error` is a refusal of the system that tells nothing about what is at `path`."""
    if isinstance(error, UnreadableError):
        raise error
    if out_of_memory(error):
        raise UnreadableError(
            f"{path} cannot be read now: there is not enough memory. That is not damage, and nothing was changed: free "
            "some memory (or raise `ulimit -v`), then run the same command again"
        ) from error
    # Libraries report what they find in a file as an OSError without a number.
    if isinstance(error, OSError) and error.errno is not None and error.errno not in _SOMETHING_ELSE:
        raise UnreadableError(
            f"{error.filename or path} cannot be read now: {os.strerror(error.errno)}. That is not damage, and nothing "
            "was changed: look at permissions, open files (`ulimit -n`), memory, disk; then run the same command again"
        ) from error


def plain_files(path: Path) -> list[Path]:
    """Everything at or below `path` that is no real folder, links too. Raises `OSError` if a folder is unreadable."""
    if not stat.S_ISDIR(path.lstat().st_mode):
        return [path]
    return [file for entry in path.iterdir() for file in plain_files(entry)]


def read_plain(path: Path, limit: int = PLAIN_BYTES) -> bytes:
    """Returns the content of a plain file of at most `limit` bytes. Raises `OSError` if it is something else."""
    with os.fdopen(open_plain(path), "rb") as file:
        if (size := os.fstat(file.fileno()).st_size) > limit:
            raise OSError(errno.EFBIG, f"it has {size:,} bytes; expected at most {limit:,}", str(path))
        return file.read(size)  # memory for as much as is asked for is taken at once


def read_bounded(path: Path, limit: int) -> bytes:
    """As `read_plain`, with a `ValueError` if there is something else at `path`, or more."""
    try:
        return read_plain(path, limit)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise ValueError(error.strerror) from None
        if error.errno in (errno.EINVAL, errno.ELOOP, errno.ENXIO, errno.ENOTDIR):
            raise ValueError("it is not a plain file (but a link, a pipe, a device or a folder)") from None
        raise


def read_json(path: Path) -> Any:
    """Returns the JSON in a plain file of at most JSON_BYTES, without its seal, if it has one.

    Raises `ValueError` if it is something else, or is not as it was sealed.
    """
    return read_json_and_seal(path)[0]


def read_json_and_seal(path: Path) -> tuple[Any, bool]:
    """As `read_json`, and whether it has a seal: files of earlier versions have none."""
    content = read_bounded(path, JSON_BYTES)
    seal = _SEAL.search(content)
    try:
        value = msgspec.json.decode(content)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    if (isinstance(value, dict) and value.pop("seal", None) is not None and seal is None) or (
        seal and not _fits(content, seal)
    ):
        raise ValueError("it is not as it was written: it was edited, cut short or damaged")
    return value, seal is not None


def open_plain(path: Path) -> int:
    """Returns a descriptor for reading. Raises `OSError` unless `path` is a plain file: a link could lead outside."""
    # Without O_NONBLOCK, opening a pipe would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a plain file", str(path))
    return descriptor


class PositionedFile:
    """A plain file read at given positions: no shared cursor, so any thread and any forked child can use it.

    Closed when the last reference to it goes.
    """

    def __init__(self, path: Path) -> None:
        """Raises `OSError` if `path` is not a plain file."""
        self.path = path
        self._descriptor = open_plain(path)
        weakref.finalize(self, os.close, self._descriptor)
        self.num_bytes = os.fstat(self._descriptor).st_size

    def read_into(self, out: memoryview, position: int) -> None:
        """Fill `out`, a view of bytes, from `position` on. Raises `DamageError` if the file ends early."""
        while out:
            try:
                count = os.preadv(self._descriptor, [out], position)
            except OSError as error:
                raise_if_unreadable(error, self.path)
                raise DamageError(f"{self.path} cannot be read: {error.strerror}; check the disk") from error
            if count == 0:
                raise DamageError(f"{self.path} ends early: something shortened it since it was opened")
            out, position = out[count:], position + count
