"""RAR files through the system's libarchive, by ctypes: it streams members, and every file is written by us.

Functions and codes: archive.h and archive_entry.h, stable since libarchive 3.0.
"""

import ctypes
import ctypes.util
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from extract.fetch.unpack import Kind, Member, UnreadableArchiveError

_EOF, _OK = 1, 0
_TYPE_MASK, _FILE, _FOLDER = 0o170000, 0o100000, 0o040000
_BLOCK_BYTES = 1 << 20

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
    """The library with its signatures declared; None where the system has none that reads both RAR formats."""
    for name in (ctypes.util.find_library("archive"), "libarchive.so.13", "libarchive.dylib"):
        try:
            found = ctypes.CDLL(name) if name else None
            for function, (result, arguments) in _SIGNATURES.items() if found else ():
                getattr(found, function).restype = result
                getattr(found, function).argtypes = arguments
        except (OSError, AttributeError):
            continue
        if found:
            return found
    return None


def rar_members(archive: Path) -> Iterator[Member]:
    """The members of a RAR file, in its order; UnreadableArchiveError where libarchive gives up."""
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
            yield Member(_name(lib, entry), _kind(lib, entry), lambda: _blocks(lib, handle, archive))
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


def _name(lib: ctypes.CDLL, entry: ctypes.c_void_p) -> str:
    """Names outside the locale's characters come as bytes, and those are UTF-8 or refused later."""
    name: bytes = lib.archive_entry_pathname_utf8(entry) or lib.archive_entry_pathname(entry) or b""
    return name.decode(errors="surrogateescape")


def _kind(lib: ctypes.CDLL, entry: ctypes.c_void_p) -> Kind:
    if lib.archive_entry_hardlink(entry):
        return "other"
    kinds: dict[int, Kind] = {_FILE: "file", _FOLDER: "folder"}
    return kinds.get(lib.archive_entry_filetype(entry) & _TYPE_MASK, "other")
