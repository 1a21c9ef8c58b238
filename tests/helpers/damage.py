"""Damaged copies of healthy videos: flipped bits, cuts, headers, holes, the wrong half; drawn from a seed."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from tests.helpers.video import encode

Random = np.random.Generator

SOURCES = {
    "avi": "mpeg4",
    "mp4": "libx264",
    "mkv": "libx264",
    "ts": "mpeg2video",
    "flv": "libx264",
    "mov": "mpeg4",
}
"""Six containers, three codecs."""


def each_flipped(file: Path, every: int) -> Iterator[int]:
    """Flip every `every`-th bit of a file, one at a time; the file is whole again afterwards."""
    content = file.read_bytes()
    for bit in range(0, 8 * len(content), every):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        yield bit
    file.write_bytes(content)


def flip_bits(content: bytearray, random: Random) -> bytearray:
    """One to a hundred bits, anywhere."""
    for position in random.integers(0, len(content), int(10 ** random.uniform(0, 2))):
        content[position] ^= 1 << int(random.integers(0, 8))
    return content


def flip_header(content: bytearray, random: Random) -> bytearray:
    """Bytes of the first kilobyte, where lengths, counts and sizes are."""
    for position in random.integers(0, min(1024, len(content)), int(random.integers(1, 20))):
        content[position] = int(random.choice([0, 255, 127, 128, random.integers(0, 256)]))
    return content


def flip_index(content: bytearray, random: Random) -> bytearray:
    """Bytes of the last kilobyte, where mp4 and AVI keep their index."""
    for position in random.integers(max(0, len(content) - 1024), len(content), int(random.integers(1, 20))):
        content[position] = int(random.integers(0, 256))
    return content


def cut(content: bytearray, random: Random) -> bytearray:
    """The end is missing."""
    return content[: int(random.integers(1, len(content)))]


def behead(content: bytearray, random: Random) -> bytearray:
    """The beginning is missing."""
    return content[int(random.integers(1, len(content))) :]


def hole(content: bytearray, random: Random) -> bytearray:
    """A block of zeros, as a disk leaves it."""
    start = int(random.integers(0, len(content)))
    length = min(int(random.integers(1, 4096)), len(content) - start)
    content[start : start + length] = bytes(length)
    return content


def lose(content: bytearray, random: Random) -> bytearray:
    """A piece is missing from the middle."""
    start = int(random.integers(0, len(content)))
    del content[start : start + int(random.integers(1, 2048))]
    return content


def repeat(content: bytearray, random: Random) -> bytearray:
    """A piece comes twice."""
    start = int(random.integers(0, len(content)))
    return content[: start + 2048] + content[start:]


DAMAGES: tuple[Callable[[bytearray, Random], bytearray], ...] = (
    flip_bits,
    flip_header,
    flip_index,
    cut,
    behead,
    hole,
    lose,
    repeat,
)


def encode_sources(folder: Path) -> list[Path]:
    """A healthy video of each kind."""
    folder.mkdir(parents=True, exist_ok=True)
    return [encode(folder / f"healthy.{suffix}", 24, codec=codec) for suffix, codec in SOURCES.items()]


def damage(source: Path, seed: int, folder: Path) -> Path:
    """A damaged copy of `source`: one kind of damage, sometimes two."""
    random = np.random.default_rng(seed)
    content = bytearray(source.read_bytes())
    for _ in range(int(random.integers(1, 3))):
        kind = DAMAGES[int(random.integers(0, len(DAMAGES)))]
        content = kind(content, random) or bytearray(b"\x00")
    path = folder / f"damaged{seed}{source.suffix}"
    path.write_bytes(content)
    return path
