"""What goes into a decode pool and what comes out of it: limits and settings, blocks of frames and ends of videos.

Limits bound what one video may cost before it is given up: a damaged or hostile file costs itself, never the run.
Shapes: F frames, H rows, W columns.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cache.ledger import Outcome
from extract.decode.backends import DEFAULT_DECODER, require_decoder

MEBIBYTE: Final = 1 << 20
GIBIBYTE: Final = 1 << 30

BLOCK_FRAMES: Final = 32
"""The most frames in a block."""

BLOCK_BYTES: Final = 16 * MEBIBYTE
"""The most bytes in a block, unless one frame is larger."""


Spans = Sequence[tuple[int, int]]
"""Half-open spans of frame indices: ascending, apart, none empty."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds for one video; a video that exceeds one fails with a reason that names it."""

    pixels: int = 8192 * 4320
    """Pixels of one picture: 8K passes, a header that claims 100,000 x 100,000 does not."""
    frames: int = 2_000_000
    """Frames decoded: nine hours at sixty a second."""
    file_bytes: int = 64 * GIBIBYTE
    """Size of the file."""
    fetch_seconds: float = 600.0
    """Time limit for downloading a remote video."""
    stall_seconds: float = 60.0
    """Time limit for the next frame (opening the file counts as one) while there is room for it."""
    video_seconds: float = 4 * 3600.0
    """Time limit for the whole video, without the time it waits for the network to take its frames."""
    processor_seconds: int = 4 * 3600
    """Processor time for the whole video, enforced by the kernel."""
    memory_bytes: int = 3 * GIBIBYTE
    """Address space a decoder may add to what it starts with, enforced by the kernel."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"limit {name} is {value!r}, it must be above zero")


def parse_limits(texts: Sequence[str]) -> dict[str, float]:
    """The limits of ["frames=5000000", "stall_seconds=2.5"], by the names of `Limits`; the others keep their defaults.

    Raises ValueError if a name is unknown, or a value is not a number above zero.
    """
    defaults = asdict(Limits())
    limits: dict[str, float] = {}
    for text in texts:
        name, _, number = text.partition("=")
        if name not in defaults:
            raise ValueError(f"limit {name!r} is not one of {', '.join(defaults)}")
        kind = type(defaults[name])
        try:
            limits[name] = kind(number)
        except ValueError:
            limits[name] = math.nan
        if not 0 < limits[name] < math.inf:
            expected = "whole number" if kind is int else "number"
            raise ValueError(f"limit {text!r}: expected a {expected} above zero, as in {name}={defaults[name]}")
    return limits


@dataclass(frozen=True, kw_only=True)
class DecodeSettings:
    """How videos are decoded."""

    decoder: str = DEFAULT_DECODER
    """One of `extract.decode.backends.DECODER_NAMES`."""
    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """Videos decoded at once, each in its own process, by one thread."""
    limits: Limits = field(default_factory=Limits)
    """What one video may cost."""
    max_frames: int | None = None
    """Keep only the first `max_frames` frames of a video; None for all."""
    fps: float | None = None
    """Keep at most `fps` frames a second; None for all."""
    blocks_ahead: int = 4
    """Blocks that a worker may fill ahead; it waits while the consumer holds them all."""
    videos_per_worker: int = 1000
    """A worker is replaced by a new one after this many, so that what a decoder leaks does not add up."""

    def __post_init__(self) -> None:
        require_decoder(self.decoder)
        for name in ("workers", "blocks_ahead", "videos_per_worker"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be at least 1")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise ValueError(f"fps is {self.fps}, it must be above 0 and finite")

    def for_worker(self) -> dict[str, object]:
        """The settings as a worker is sent them when it starts."""
        sampling = {"max_frames": self.max_frames, "fps": self.fps}
        return {"decoder": self.decoder, "limits": asdict(self.limits), "sampling": sampling}


@dataclass(frozen=True)
class VideoRequest:
    """A video to decode."""

    video_id: str
    path: Path
    spans: Spans | None = None
    """The kept frames to deliver, by index; decoding ends with the last one. None for all.

    `()` delivers none and decodes to the end: the exact count, at the cost of decoding without conversion. If spans are
    given, `VideoEnd.pts_seconds_F` holds the times of all frames up to there.
    """

    follow_seconds: float | None = None
    """Wait at the end of a file that still grows, or for a pipe, until nothing has come for as long; None: do not."""

    def __post_init__(self) -> None:
        stops = [0, *(stop for _, stop in self.spans or ())]
        if any(not before <= start < stop for before, (start, stop) in zip(stops, self.spans or (), strict=False)):
            raise ValueError(f"spans {self.spans} of {self.video_id}: expected ascending half-open spans")


@dataclass(kw_only=True, eq=False)
class FrameBlock:
    """Consecutive frames of one video, in memory shared with the worker that decoded them."""

    video_id: str
    first_frame: int
    """Index of the first one among the video's kept frames."""
    frames_FHW3: NDArray[np.uint8]
    """RGB, a view: valid until `release`."""
    pts_seconds_F: NDArray[np.float64]
    """Times since the video's first frame, ascending."""
    on_release: Callable[[], None]
    """Tells the supervisor."""
    _released: bool = False

    def release(self) -> None:
        """Give the memory back to the worker, from any thread; more than once does nothing."""
        if not self._released:
            self._released = True
            self.on_release()


@dataclass(frozen=True, eq=False)
class VideoEnd:
    """What became of a video, after its last block. Blocks of a failed video are to be dropped."""

    outcome: Outcome
    pts_seconds_F: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    """If spans were asked for: times of all frames that sampling keeps, also of those that were not delivered."""
