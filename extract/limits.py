"""How much one video may cost before it is given up: a damaged or hostile file costs itself, never the run."""

from dataclasses import dataclass
from typing import Final

MEBIBYTE: Final = 1 << 20
GIBIBYTE: Final = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds for one video; a video that exceeds one fails with a reason that names it."""

    max_pixels: int = 8192 * 4320
    """Pixels of one picture: 8K passes, a header that claims 100,000 x 100,000 does not."""
    max_frames: int = 2_000_000
    """Frames decoded: nine hours at sixty a second."""
    max_bytes: int = 64 * GIBIBYTE
    """Size of the file."""
    stall_seconds: float = 60.0
    """Without a new frame (opening the file counts as one) while there was room for it."""
    video_seconds: float = 4 * 3600.0
    """For the whole video, without the time it waited for the network to take its frames."""
    processor_seconds: int = 4 * 3600
    """Processor time for the whole video, kept by the kernel."""
    memory_bytes: int = 3 * GIBIBYTE
    """Address space a decoder may add to what it starts with, kept by the kernel."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"limit {name} is {value!r}, it must be above zero")
