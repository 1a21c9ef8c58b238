"""Which container a file holds, by its first bytes, before any decoder reads it.

FFmpeg opens whatever it recognises, including playlists and scripts that name other files. So a file is opened only if
its first bytes are those of a container that holds nothing but its own frames, and then as that container alone.
"""

import os
import stat
from pathlib import Path
from typing import Final

from cache.common.errors import DecodeError

HEAD_BYTES: Final = 4096
"""Read from the start of a file to recognise it; an MPEG transport stream may begin in the middle of a packet."""

_MOV_BOXES: Final = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"moof", b"styp")
_SYNC_RUN: Final = 5

_STARTS: Final = {
    b"\x1aE\xdf\xa3": "matroska",
    b"FLV\x01": "flv",
    b"OggS": "ogg",
    bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"): "asf",
    b"\x00\x00\x01\xba": "mpeg",
    b"\x00\x00\x01\xb3": "mpegvideo",
}

FFMPEG_NAMES: Final = {
    "mov": "mov,mp4,m4a,3gp,3g2,mj2",
    "avi": "avi",
    "matroska": "matroska,webm",
    "mpegts": "mpegts",
    "flv": "flv",
    "ogg": "ogg",
    "asf": "asf",
    "mpeg": "mpeg",
    "mpegvideo": "mpegvideo",
}
"""FFmpeg's names of each container: the `format_whitelist` it is opened with."""


def container_of(head: bytes) -> str | None:
    """The container whose file begins with `head`, a key of `FFMPEG_NAMES`; None if it is unknown."""
    for start, container in _STARTS.items():
        if head.startswith(start):
            return container
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if head[4:8] in _MOV_BOXES:
        return "mov"
    return "mpegts" if _has_transport_packets(head) else None


def _has_transport_packets(head: bytes) -> bool:
    """Packets of 188 bytes that begin with 0x47, alone or (Blu-ray) behind a time stamp of 4 bytes."""
    return any(
        all(
            position < len(head) and head[position] == 0x47 for position in range(start, start + _SYNC_RUN * size, size)
        )
        for size in (188, 192)
        for start in range(size)
    )


def open_regular(path: Path, max_bytes: int) -> tuple[int, str]:
    """Open a video for reading: (file descriptor, container). The caller closes the descriptor.

    Decoders are given the descriptor's name and not the path, so that nothing in a file's name has a meaning for them.
    Raises DecodeError, with the reason, if it is missing, not a regular file, empty, too large or no known container.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise DecodeError(f"cannot be opened: {error.strerror}") from error
    try:
        return descriptor, _check(descriptor, max_bytes)
    except BaseException:
        os.close(descriptor)
        raise


def _check(descriptor: int, max_bytes: int) -> str:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise DecodeError("not a regular file")
    if status.st_size == 0:
        raise DecodeError("empty file (0 bytes)")
    if status.st_size > max_bytes:
        raise DecodeError(f"file of {status.st_size} bytes, the limit is {max_bytes} bytes")
    try:
        head = os.pread(descriptor, HEAD_BYTES, 0)
    except OSError as error:
        raise DecodeError(f"cannot be read: {error.strerror}") from error
    container = container_of(head)
    if container is None:
        raise DecodeError(f"not a known video container (begins with {head[:12]!r})")
    return container
