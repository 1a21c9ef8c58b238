"""Whether a file has all the bytes that its container declares: the headers of its parts against its size.

This finds a copy or a download that was cut, also between two packets, where decoders notice nothing. Only lengths
count, no claims about frames or seconds. Nothing is decoded; at most `MOST_BOXES` headers and the last MiB are read.
"""

import os
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from cache.common.errors import DecodeError
from extract.decode.containers import HEAD_BYTES, open_regular, transport_packets

MOST_BOXES: Final = 1_000_000
"""Boxes of an MP4 file that are looked at."""
TAIL_BYTES: Final = 1 << 20
"""Bytes at the end of a stream without a table of contents that are looked at."""

_AVI_SLACK: Final = 8
"""Some programs declare the length of the file in place of that of the part behind the first 8 bytes."""
_LARGEST_SIDX: Final = 40 + 12 * 0xFFFF
_EBML_SEGMENT: Final = b"\x18\x53\x80\x67"
_FLV_FILESIZE: Final = b"\x00\x08filesize\x00"
_ASF_PROPERTIES: Final = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_START_CODE: Final = b"\x00\x00\x01"


def missing_bytes(descriptor: int, container: str) -> str:
    """What shows that the end of an open file is missing, as text; empty if nothing does.

    `container`: a key of `extract.decode.containers.FFMPEG_NAMES`.
    """
    size = os.fstat(descriptor).st_size
    return next((f"cut short: {text}" for text in _CHECKS[container](descriptor, size)), "")


def is_complete(path: Path) -> bool:
    """Whether the file at `path` is a video of a known container that has all its bytes."""
    try:
        descriptor, container = open_regular(path, sys.maxsize)
        with os.fdopen(descriptor, "rb"):
            return not missing_bytes(descriptor, container)
    except (DecodeError, OSError):
        return False


def _beyond(what: str, end: int, size: int, slack: int = 0) -> Iterator[str]:
    """A finding if `what` ends more than `slack` bytes behind the file."""
    if end > size + slack:
        yield f"{what} needs {end:,} bytes, the file has {size:,}"


def _avi(descriptor: int, size: int) -> Iterator[str]:
    position = 0
    while position < size:
        name, length = os.pread(descriptor, 4, position), os.pread(descriptor, 4, position + 4)
        if name != b"RIFF" or len(length) < 4 or length in (bytes(4), b"\xff" * 4):
            return
        position += 8 + int.from_bytes(length, "little")
        yield from _beyond("its RIFF chunk", position, size, _AVI_SLACK)
        position += position % 2


def _mov(descriptor: int, size: int) -> Iterator[str]:
    position = 0
    for _ in range(MOST_BOXES):
        if position >= size:
            return  # also behind what the system takes for a position
        header = os.pread(descriptor, 16, position)
        if len(header) < 8:
            return
        length, name = int.from_bytes(header[:4]), header[4:8]
        if length == 1:
            length = int.from_bytes(header[8:16])
        if length < 8:
            return  # 0: as far as the file goes
        position += length
        if name in (b"mdat", b"moov", b"moof"):  # what comes behind the last box is no box
            yield from _beyond(f"its box {name.decode()}", position, size)
        elif name == b"sidx":
            index = os.pread(descriptor, min(length, _LARGEST_SIDX), position - length)
            yield from _beyond("its index (sidx)", position + _indexed_bytes(index), size)


def _indexed_bytes(sidx: bytes) -> int:
    """Bytes behind a segment index (ISO 14496-12, 8.16.3) that it refers to; 0 if it is not understood."""
    layout = struct.Struct(">24xI2xH" if sidx[8:9] == b"\x00" else ">28xQ2xH")
    if len(sidx) < layout.size:
        return 0
    offset, count = layout.unpack_from(sidx)
    references = sidx[layout.size : layout.size + 12 * count]
    return int(offset) + sum(
        size & 0x7FFFFFFF for (size,) in struct.iter_unpack(">I8x", references[: len(references) // 12 * 12])
    )


def _matroska(descriptor: int, size: int) -> Iterator[str]:
    head = os.pread(descriptor, HEAD_BYTES, 0)
    start = head.find(_EBML_SEGMENT) + len(_EBML_SEGMENT)
    if start < len(_EBML_SEGMENT) or start == len(head):
        return
    width = 9 - head[start].bit_length()
    length = int.from_bytes(head[start : start + width]) & ((1 << 7 * width) - 1)
    if width <= 8 and length != (1 << 7 * width) - 1:  # all ones: unknown, written while it was recorded
        yield from _beyond("its segment", start + width + length, size)


def _flv(descriptor: int, size: int) -> Iterator[str]:
    head = os.pread(descriptor, HEAD_BYTES, 0)
    start = head.find(_FLV_FILESIZE) + len(_FLV_FILESIZE)
    if start >= len(_FLV_FILESIZE) and start + 8 <= len(head):
        (declared,) = struct.unpack_from(">d", head, start)
        if 0 < declared < 1 << 63:
            yield from _beyond("by its metadata it", int(declared), size)


def _asf(descriptor: int, size: int) -> Iterator[str]:
    head = os.pread(descriptor, HEAD_BYTES, 0)
    start = head.find(_ASF_PROPERTIES)
    if start >= 0 and start + 92 <= len(head):
        declared, flags = struct.unpack_from("<40xQ40xI", head, start)
        if not flags & 1:  # no broadcast, which was written before its length was known
            yield from _beyond("by its header it", declared, size)


def _ogg(descriptor: int, size: int) -> Iterator[str]:
    start = max(0, size - TAIL_BYTES)
    tail = os.pread(descriptor, TAIL_BYTES, start)
    if (page := tail.rfind(b"OggS")) >= 0:
        lengths = tail[page + 27 : page + 27 + tail[page + 26]] if page + 26 < len(tail) else b""
        yield from _beyond("its last page", start + page + 27 + len(lengths) + sum(lengths), size)


def _mpeg(descriptor: int, size: int) -> Iterator[str]:
    start = max(0, size - TAIL_BYTES)
    tail = os.pread(descriptor, TAIL_BYTES, start)
    position = tail.rfind(_START_CODE + b"\xba")
    if position < 0:
        return
    header = tail[position : position + 14].ljust(14, b"\x00")
    position += 14 + (header[13] & 7) if header[4] & 0xC0 == 0x40 else 12
    while tail[position : position + 3] == _START_CODE and tail[position + 3 : position + 4] != b"\xb9":
        position += 6 + int.from_bytes(tail[position + 4 : position + 6])
    yield from _beyond("its last packet", start + position, size)


def _mpegts(descriptor: int, size: int) -> Iterator[str]:
    found = transport_packets(os.pread(descriptor, HEAD_BYTES, 0))
    if found is None:
        return
    first, distance = found
    last = size - (size - first) % distance
    if 0 < size - last < 188 and os.pread(descriptor, 1, last) == b"G":
        yield f"its last packet has {size - last} of 188 bytes"
    begin = max(first, last - TAIL_BYTES // distance * distance)
    tail = os.pread(descriptor, last - begin, begin)
    for stream, missing in _unfinished(tail, distance).items():
        yield f"the last packet of its stream {stream} lacks {missing:,} bytes"


def _unfinished(packets: bytes, distance: int) -> dict[int, int]:
    """Bytes missing from the last PES packet of each stream, where that declares its length and is not complete."""
    missing: dict[int, int] = {}
    for start in range(0, len(packets) - 187, distance):
        sync, high, low, flags = packets[start : start + 4]
        if sync != 0x47 or not flags & 0x10:
            continue
        stream = (high & 0x1F) << 8 | low
        payload = packets[start + 4 + (1 + packets[start + 4] if flags & 0x20 else 0) : start + 188]
        if high & 0x40:
            length = int.from_bytes(payload[4:6]) if payload.startswith(_START_CODE) else 0
            missing[stream] = length + 6 if length else 0
        if stream in missing:
            missing[stream] -= len(payload)
    return {stream: count for stream, count in missing.items() if count > 0}


_CHECKS: Final[dict[str, Callable[[int, int], Iterator[str]]]] = {
    "avi": _avi,
    "mov": _mov,
    "matroska": _matroska,
    "mpegts": _mpegts,
    "mpeg": _mpeg,
    "flv": _flv,
    "ogg": _ogg,
    "asf": _asf,
    "mpegvideo": lambda _descriptor, _size: iter(()),
}
