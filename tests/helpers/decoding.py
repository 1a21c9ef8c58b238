"""Decoding whole videos, in this process and through a pool, into plain arrays."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import xxhash
from numpy.typing import NDArray

from cache.ledger import Outcome
from extract.decode import DecodePool, FrameBlock, Limits, VideoEnd
from extract.decode.backends import load_decoder
from extract.decode.frames import DecodeCounts, FrameReader, opened
from extract.decode.timeline import Sampling


@dataclass
class Decoded:
    """A video that was decoded in this process."""

    frames_FHW3: NDArray[np.uint8]
    pts_seconds: NDArray[np.float64]
    counts: DecodeCounts
    declared: int | None
    doubt: str


def decode_here(
    path: Path,
    decoder: str = "pyav",
    *,
    block_frames: int = 32,
    sampling: Sampling | None = None,
    limits: Limits | None = None,
) -> Decoded:
    """Decode a video in this process."""
    limits, buffer = limits or Limits(), np.empty(1 << 24, np.uint8)
    frames: list[NDArray[np.uint8]] = []
    times: list[float] = []
    with opened(path, load_decoder(decoder), limits) as video:
        reader = FrameReader(video, sampling or Sampling(), limits)
        for block in reader.blocks(lambda: buffer, lambda: None, block_frames):
            assert block.first_frame == len(times)
            assert len(block.frames_FHW3) <= block_frames
            frames.extend(block.frames_FHW3.copy())
            times.extend(block.pts_seconds_F)
        declared, doubt = video.header.declared_frames, video.doubt
    return Decoded(np.array(frames, np.uint8), np.array(times), reader.counts, declared, doubt)


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """As if `package` were not installed."""
    version = metadata.version

    def version_of(name: str) -> str:
        if name == package:
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", version_of)


@dataclass
class Received:
    """What a pool delivered for one video."""

    outcome: Outcome | None = None
    frames: int = 0
    blocks: int = 0
    pixels: xxhash.xxh3_64 = field(default_factory=xxhash.xxh3_64)
    times: list[float] = field(default_factory=list)


def pixels_digest(frames_FHW3: NDArray[np.uint8]) -> str:
    """The value of `Received.pixels.hexdigest()` for these frames."""
    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(frames_FHW3))


def receive(pool: DecodePool, videos: Iterable[tuple[str, Path]]) -> dict[str, Received]:
    """Run videos through a pool and check the contract of its stream on the way."""
    received: dict[str, Received] = {}
    for item in pool.decode(videos):
        if isinstance(item, FrameBlock):
            video = received.setdefault(item.video_id, Received())
            assert video.outcome is None, "a block after the video's end"
            assert item.first_frame == video.frames, "blocks out of order"
            assert len(item.pts_seconds_F) == len(item.frames_FHW3)
            video.frames += len(item.frames_FHW3)
            video.blocks += 1
            video.pixels.update(np.ascontiguousarray(item.frames_FHW3))
            video.times.extend(item.pts_seconds_F)
            item.release()
        else:
            assert isinstance(item, VideoEnd)
            video = received.setdefault(item.outcome.video_id, Received())
            assert video.outcome is None, "two ends of one video"
            video.outcome = item.outcome
            if item.outcome.status != "failed":
                assert item.outcome.num_frames == video.frames
    return received


def by_path(paths: Iterable[Path]) -> list[tuple[str, Path]]:
    """Videos named after their files."""
    return [(path.name, path) for path in paths]
