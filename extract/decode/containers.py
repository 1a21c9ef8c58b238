"""Which container a file holds, by its first bytes, before any decoder reads it.

FFmpeg opens whatever it recognises, including playlists and scripts that name other files. So a file is opened only if
its first bytes are those of a container that holds nothing but its own frames, and then as that container alone.
"""

import os
import re
import stat
from pathlib import Path
from typing import Final

from cache.common.errors import DecodeError

HEAD_BYTES: Final = 1 << 16
"""Read from the start of a file to recognise it; streams may begin behind zeros or in the middle of a packet."""

_MOV_BOXES: Final = frozenset(
    b"ftyp moov mdat moof styp sidx ssix emsg prft mfra imda meta udta uuid pdin pnot"
    b" wide free skip junk ediw pict PICT prfl".split()
)
_AVI_FORMS: Final = (b"AVI ", b"AVIX", b"AVI\x19", b"AMV ")

_STARTS: Final = {
    b"\x1aE\xdf\xa3": "matroska",
    b"FLV\x01": "flv",
    b"OggS": "ogg",
    bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"): "asf",
}

_PACK: Final = re.compile(rb"\x00\x00\x01\xba[\x20-\x2f\x40-\x7f]")
"""The header of a pack of MPEG-1 or MPEG-2."""
_SEQUENCE: Final = re.compile(rb"\x00+\x00\x01\xb3")
_SYNC_RUNS: Final = {size: re.compile(b"(?=%bG)" % (b"G.{%d}" % (size - 1) * 4), re.DOTALL) for size in (188, 192, 204)}
"""Five packets of a transport stream: alone, behind a time stamp of 4 bytes (Blu-ray), before 16 bytes of parity."""

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


def container_of(head: bytes) -> str:
    """The container whose file begins with `head`, a key of `FFMPEG_NAMES`. Raises DecodeError if it is unknown."""
    for start, container in _STARTS.items():
        if head.startswith(start):
            return container
    if head[:4] == b"RIFF" and head[8:12] in _AVI_FORMS:
        return "avi"
    if _has_boxes(head):
        return "mov"
    if transport_packets(head):
        return "mpegts"
    if _PACK.search(head):
        return "mpeg"
    if _SEQUENCE.match(head):
        return "mpegvideo"
    raise DecodeError(f"not a known video container (begins with {head[:12]!r})")


def _has_boxes(head: bytes) -> bool:
    """Whether a box of MP4 is among the first ones, which may have any name. Zeros before them are passed over."""
    position = 0
    while position + 8 <= len(head):
        size = int.from_bytes(head[position : position + 4])
        if size in (0, 1) or size >= 8:
            if head[position + 4 : position + 8] in _MOV_BOXES:
                return True
            if size == 1:
                size = int.from_bytes(head[position + 8 : position + 16])
        position += size if size >= 8 else 4
    return False


def transport_packets(head: bytes) -> tuple[int, int] | None:
    """Where the first whole packet of a transport stream begins, and the distance to the next; None if it is none."""
    for size, run in _SYNC_RUNS.items():
        if found := run.search(head):
            return found.start(), size
    return None


def open_regular(path: Path, max_bytes: int) -> tuple[int, str]:
    """Open a video for reading: (file descriptor, container). The caller closes the descriptor.

    Decoders are given the descriptor's name and not the path, so that nothing in a file's name has a meaning for them.
    Raises DecodeError, with the reason, if it is missing, not a regular file, empty, too large or no known container.
    """
    descriptor = open_for_reading(path)
    try:
        return descriptor, _check(descriptor, max_bytes)
    except BaseException:
        os.close(descriptor)
        raise


def open_for_reading(path: Path) -> int:
    """The descriptor of whatever is at `path`, without waiting for a pipe's writer. Raises DecodeError."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise DecodeError(f"cannot be opened: {error.strerror}") from error


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
    return container_of(head)
