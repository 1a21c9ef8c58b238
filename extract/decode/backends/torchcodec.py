"""torchcodec: PyTorch's decoder. Optional: it needs FFmpeg's shared libraries, and each worker imports torch."""

from collections.abc import Iterator
from typing import Final

import numpy as np
from torchcodec.decoders import VideoDecoder

from cache.common.errors import DecodeError
from extract.decode.backends.protocol import FrameHW3, OpenVideo, VideoSource, first_line
from extract.decode.backends.pyav import read_header

_PAST_THE_END: Final = "no more frames left"
"""torchcodec counts packets; some hold no frame, so that it asks for more frames than there are."""


def open_video(source: VideoSource) -> OpenVideo:
    """Open with torchcodec, after PyAV has read and accepted the header."""
    return _TorchcodecVideo(source)


class _TorchcodecVideo:
    errors = 0
    doubt = ""

    def __init__(self, source: VideoSource) -> None:
        self.header = read_header(source)
        try:
            decoder = VideoDecoder(source.name, dimension_order="NHWC", num_ffmpeg_threads=source.threads)
        except (RuntimeError, ValueError) as error:
            raise DecodeError(f"torchcodec does not open it: {first_line(error)}") from error
        self._frames = _in_order(decoder)
        self._pixels_HW3: FrameHW3 = np.empty((0, 0, 3), np.uint8)
        self.seconds: float | None = None

    @property
    def shape(self) -> tuple[int, int]:
        height, width, _ = self._pixels_HW3.shape
        return height, width

    def advance(self) -> bool:
        try:
            found = next(self._frames, None)
        except RuntimeError as error:
            if _PAST_THE_END in str(error):
                return False
            raise DecodeError(f"torchcodec stops: {first_line(error)}") from error
        if found is None:
            return False
        self._pixels_HW3, self.seconds = found
        return True

    def copy_to(self, out_HW3: FrameHW3) -> None:
        np.copyto(out_HW3, self._pixels_HW3)

    def close(self) -> None:
        self._frames = iter(())


def _in_order(decoder: VideoDecoder) -> Iterator[tuple[FrameHW3, float]]:
    for index in range(len(decoder)):
        frame = decoder.get_frame_at(index)
        yield frame.data.numpy(), float(frame.pts_seconds)
