"""decord (the maintained `decord2`): reads the whole file once for an index, then decodes in a thread of its own.

Where a file holds fewer frames than packets decord goes back and gives earlier frames again, in silence: every HMDB-51
video ends with a repeated frame. It cannot be seen from outside, so such frames are kept. docs/videos.md says more.
"""

import ctypes
from collections.abc import Generator
from typing import Any, Final

import decord
import numpy as np
from numpy.typing import NDArray

from cache.common.errors import DecodeError
from extract.decode.backends.protocol import ArrayVideo, FrameHW3, OpenVideo, VideoSource, first_line
from extract.decode.backends.pyav import read_header

NO_TIME_SECONDS: Final = -1e12

decord.logging.set_level(decord.logging.ERROR)


def open_video(source: VideoSource) -> OpenVideo:
    """Open with decord, after PyAV has read and accepted the header."""
    header = read_header(source)
    try:
        reader = decord.VideoReader(source.name, num_threads=1)
        times = reader.get_frame_timestamp(range(len(reader)))[:, 0]
    except (decord.DECORDError, RuntimeError, AssertionError) as error:
        raise DecodeError(f"decord does not open it: {first_line(error)}") from error
    # FFmpeg's mark for "no time", in seconds. Decord shows it for files (MPEG-PS) whose other times it gets wrong.
    return ArrayVideo(
        header, _frames(reader, np.full_like(times, np.nan) if (times < NO_TIME_SECONDS).any() else times)
    )


def _frames(reader: Any, times_F: NDArray[np.floating[Any]]) -> Generator[tuple[FrameHW3, float], None, None]:
    # Asking beyond the last frame makes some versions go back to the first.
    for index, seconds in enumerate(times_F):
        try:
            frame = reader.next()
        except StopIteration:
            return
        except (decord.DECORDError, RuntimeError) as error:
            raise DecodeError(f"decord stops after {index} frames: {first_line(error)}") from error
        yield _pixels(frame), float(seconds)


def _pixels(frame: Any) -> FrameHW3:
    """A view of the native buffer, valid as long as `frame`: decord's own way to numpy would copy once more."""
    height, width, channels = frame.shape
    buffer = (ctypes.c_uint8 * (height * width * channels)).from_address(frame.handle.contents.data)
    # Where FFmpeg pads rows to a multiple of the width, decord counts the padding as further "channels".
    rows = np.ctypeslib.as_array(buffer).reshape(height, width * channels)
    return rows[:, : width * 3].reshape(height, width, 3)
