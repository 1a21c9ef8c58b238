"""torchcodec: PyTorch's decoder. Optional: it needs FFmpeg's shared libraries, and each worker imports torch."""

from collections.abc import Generator
from typing import Final

from torchcodec.decoders import VideoDecoder

from cache.common.errors import DecodeError
from extract.decode.backends.protocol import ArrayVideo, FrameHW3, OpenVideo, VideoSource, first_line
from extract.decode.backends.pyav import read_header

_PAST_THE_END: Final = "no more frames left"
"""torchcodec counts packets; some hold no frame, so that it asks for more frames than there are."""


def open_video(source: VideoSource) -> OpenVideo:
    """Open with torchcodec, after PyAV has read and accepted the header."""
    header = read_header(source)
    try:
        decoder = VideoDecoder(source.name, dimension_order="NHWC", num_ffmpeg_threads=1)
    except (RuntimeError, ValueError) as error:
        raise DecodeError(f"torchcodec does not open it: {first_line(error)}") from error
    return ArrayVideo(header, _frames(decoder))


def _frames(decoder: VideoDecoder) -> Generator[tuple[FrameHW3, float], None, None]:
    for index in range(len(decoder)):
        try:
            frame = decoder.get_frame_at(index)
        except RuntimeError as error:
            if _PAST_THE_END in str(error):
                return
            raise DecodeError(f"torchcodec stops: {first_line(error)}") from error
        yield frame.data.numpy(), float(frame.pts_seconds)
