"""How much one video may cost before it is given up: a damaged or hostile file costs itself, never the run."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

MEBIBYTE: Final = 1 << 20
GIBIBYTE: Final = 1 << 30


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
    """For a video that is elsewhere to come here."""
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


def parse_limits(texts: Sequence[str]) -> dict[str, float]:
    """The limits of ["frames=5000000", "stall_seconds=2.5"], by the names of `Limits`; the others keep their defaults.

    ValueError where a name is not known or a number is none.
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
