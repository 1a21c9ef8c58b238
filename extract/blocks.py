"""What goes into a decode pool and what comes out of it: settings, blocks of frames, last words.

Shapes: F frames, H rows, W columns.
"""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache.ledger import Outcome
from extract.decode import BLOCK_BYTES
from extract.decoders import DEFAULT_DECODER, require_decoder
from extract.limits import Limits
from extract.ring import RingShape
from extract.timeline import Sampling


@dataclass(frozen=True, kw_only=True)
class DecodeSettings:
    """How videos are decoded."""

    decoder: str = DEFAULT_DECODER
    """One of `extract.decoders.DECODER_NAMES`."""
    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """Videos decoded at once, each in its own process."""
    threads: int = 1
    """Decoding threads in each worker: more than one pays only where videos are fewer than cores."""
    limits: Limits = field(default_factory=Limits)
    """What one video may cost."""
    max_frames: int | None = None
    """Keep only the first so many frames of a video."""
    fps: float | None = None
    """Keep at most so many frames a second."""
    blocks_ahead: int = 4
    """Blocks that a worker may have under way; it waits when the consumer holds them all."""
    videos_per_worker: int = 1000
    """A worker is replaced by a new one after so many, so that nothing a decoder leaks adds up."""

    def __post_init__(self) -> None:
        require_decoder(self.decoder)
        for name in ("workers", "threads", "blocks_ahead", "videos_per_worker"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be at least 1")
        assert self.sampling

    @property
    def sampling(self) -> Sampling:
        """Which frames are kept."""
        return Sampling(max_frames=self.max_frames, fps=self.fps)

    @property
    def ring(self) -> RingShape:
        """Shared memory of one worker: address space for the largest pictures, pages only for what is used."""
        return RingShape.holding(self.blocks_ahead, max(BLOCK_BYTES, self.limits.pixels * 3))

    def for_worker(self) -> dict[str, object]:
        """What a worker is told when it starts."""
        return {
            "decoder": self.decoder,
            "threads": self.threads,
            "limits": asdict(self.limits),
            "sampling": asdict(self.sampling),
        }


@dataclass(kw_only=True, eq=False)
class FrameBlock:
    """Frames of one video that follow each other, in memory shared with the worker that decoded them."""

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


@dataclass(frozen=True)
class VideoEnd:
    """The last word on a video; blocks of one that failed are to be dropped."""

    outcome: Outcome


@dataclass(frozen=True)
class Cancelled:
    """The supervisor has given up everything that was under way."""


@dataclass(frozen=True)
class Wanted:
    """A video to decode."""

    video_id: str
    path: Path


Result = FrameBlock | VideoEnd | Cancelled | BaseException
