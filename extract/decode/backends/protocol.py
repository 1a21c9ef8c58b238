"""What every decoder offers: a video whose frames are stepped through one by one."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

FrameHW3 = NDArray[np.uint8]
"""One picture, RGB, `[H, W, 3]`."""


class ByteStream(Protocol):
    """Bytes that are read once."""

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end."""


@dataclass(frozen=True, kw_only=True)
class VideoSource:
    """A video file that has been opened and recognised, and the limits of a decoder."""

    name: str
    """The name of an open file descriptor, for FFmpeg."""
    container: str
    """A key of `extract.decode.containers.FFMPEG_NAMES`, by the file's first bytes."""
    max_pixels: int
    """Limit for one picture; a larger one is refused before memory is allocated for it."""
    cut_short: str
    """What shows that the file's end is missing (`extract.decode.completeness`); empty if nothing does."""
    stream: ByteStream | None = None
    """Read instead of `name`, if the file still grows; only PyAV can."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a video's container declares."""

    width: int
    """Pixels, as stored (before a rotation)."""
    height: int
    """Pixels, as stored."""
    frame_seconds: float
    """Usual distance between two frames."""
    declared_frames: int | None
    """Number of frames by the container; None if it does not say."""
    declared_seconds: float | None
    """Length of the video stream by the container; None if it does not say."""
    cut_short: str = ""
    """As in `VideoSource`."""


class OpenVideo(Protocol):
    """One video being decoded, frame by frame in presentation order, in constant memory.

    All decoders treat stored pictures alike: a rotation by a multiple of 90 degrees is applied; frames have the first
    one's size (others are scaled to it); every pixel format is converted to 8-bit RGB by libswscale; interlacing,
    mirroring and pixel aspect are left as they are. FFmpeg's own error messages go to descriptor 2.
    """

    header: Header

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of every frame, rotated; known once `advance` has returned True."""

    @property
    def errors(self) -> int:
        """Number of errors that were raised and skipped."""

    @property
    def doubt(self) -> str:
        """What was broken in a video that was decoded; empty if nothing was."""

    def advance(self) -> bool:
        """Decode the next frame; False at the end. Raises DecodeError if nothing more can be decoded."""

    @property
    def seconds(self) -> float | None:
        """The current frame's time as reported, from any origin; None if it has none."""

    def copy_to(self, out_HW3: FrameHW3) -> None:
        """Write the current frame's pixels."""

    def close(self) -> None:
        """Free what the video holds."""


OpenDecoder = Callable[[VideoSource], OpenVideo]
"""Opens a video; raises DecodeError if it cannot."""


def first_line(error: Exception) -> str:
    """A native library's message without its C++ stack and the place in its source."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].split("] ")[-1]


class ArrayVideo:
    """An `OpenVideo` of a decoder that gives each frame as an array with its time."""

    errors = 0
    doubt = ""

    def __init__(self, header: Header, frames: Generator[tuple[FrameHW3, float], None, None]) -> None:
        """`frames`: pixels, which may be overwritten once the next ones are asked for, and seconds."""
        self.header, self._frames = header, frames
        self._pixels_HW3: FrameHW3 = np.empty((0, 0, 3), np.uint8)
        self.seconds: float | None = None

    @property
    def shape(self) -> tuple[int, int]:
        height, width, _ = self._pixels_HW3.shape
        return height, width

    def advance(self) -> bool:
        if (found := next(self._frames, None)) is None:
            return False
        self._pixels_HW3, self.seconds = found
        return True

    def copy_to(self, out_HW3: FrameHW3) -> None:
        np.copyto(out_HW3, self._pixels_HW3)

    def close(self) -> None:
        self._frames.close()
