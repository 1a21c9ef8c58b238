"""decord (the maintained `decord2`): reads the whole file once for an index, then decodes in a thread of its own.

Where a file holds fewer frames than packets decord goes back and gives earlier frames again, in silence: every HMDB-51
video ends with a repeated frame. It cannot be seen from outside, so such frames are kept. docs/videos.md says more.
"""

import ctypes
from typing import Any, Final

import decord
import numpy as np

from cache.common.errors import DecodeError
from extract.decode.backends.protocol import FrameHW3, OpenVideo, VideoSource, first_line
from extract.decode.backends.pyav import read_header

NO_TIME_SECONDS: Final = -1e12

decord.logging.set_level(decord.logging.ERROR)


def open_video(source: VideoSource) -> OpenVideo:
    """Open with decord, after PyAV has read and accepted the header."""
    return _DecordVideo(source)


class _DecordVideo:
    errors = 0
    doubt = ""

    def __init__(self, source: VideoSource) -> None:
        self.header = read_header(source)
        try:
            self._reader = decord.VideoReader(source.name, num_threads=source.threads)
            self._count = len(self._reader)
            times = self._reader.get_frame_timestamp(range(self._count))[:, 0]
        except (decord.DECORDError, RuntimeError, AssertionError) as error:
            raise DecodeError(f"decord does not open it: {first_line(error)}") from error
        # FFmpeg's mark for "no time", in seconds. Decord shows it for files (MPEG-PS) whose other times it gets wrong.
        self._times = np.full_like(times, np.nan) if (times < NO_TIME_SECONDS).any() else times
        self._index = -1
        self._frame: Any = None
        self.shape = (0, 0)

    @property
    def seconds(self) -> float | None:
        return float(self._times[self._index])

    def advance(self) -> bool:
        # Asking beyond the last frame makes some versions go back to the first.
        if self._index + 1 >= self._count:
            return False
        try:
            self._frame = self._reader.next()
        except StopIteration:
            return False
        except (decord.DECORDError, RuntimeError) as error:
            raise DecodeError(f"decord stops after {self._index + 1} frames: {first_line(error)}") from error
        self._index += 1
        height, width, _ = self._frame.shape
        self.shape = (height, width)
        return True

    def copy_to(self, out_HW3: FrameHW3) -> None:
        # A view of the native buffer: decord's own way to numpy would copy once more.
        # Where FFmpeg pads rows to a multiple of the width, decord counts the padding as further "channels".
        height, width, channels = self._frame.shape
        buffer = (ctypes.c_uint8 * (height * width * channels)).from_address(self._frame.handle.contents.data)
        rows = np.ctypeslib.as_array(buffer).reshape(height, width * channels)
        np.copyto(out_HW3, rows[:, : width * 3].reshape(height, width, 3))

    def close(self) -> None:
        self._frame = None
        del self._reader
