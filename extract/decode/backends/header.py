"""What a container says of its video, read with PyAV whichever decoder comes after: one gate for all of them.

The container is opened as the one its first bytes say, and as nothing else.
"""

from contextlib import suppress
from typing import Any, Final

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from cache.common.errors import DecodeError
from extract.decode.backends.protocol import Header, Source
from extract.decode.containers import FFMPEG_NAMES

USUAL_FRAME_SECONDS: Final = 1 / 25
"""Where a container does not say how many frames a second it holds."""

# FFmpeg's own callback writes to descriptor 2, from any of its threads and without needing the interpreter.
av.logging.restore_default_callback()
av.logging.set_libav_level(av.logging.ERROR)


def open_container(source: Source) -> InputContainer:
    """The opened container; DecodeError where FFmpeg does not find it to be what its first bytes say."""
    try:
        return av.open(
            source.name,
            mode="r",
            options={"format_whitelist": FFMPEG_NAMES[source.container], "protocol_whitelist": "file"},
            metadata_errors="ignore",
        )
    except (av.FFmpegError, ValueError) as error:
        raise DecodeError(f"damaged {source.container} header: {describe(error)}") from error


def video_stream(container: InputContainer) -> VideoStream:
    """The video stream to decode: FFmpeg's choice. A cover picture is none."""
    stream = container.streams.best("video")
    if stream is None or stream.disposition & Disposition.attached_pic:
        others = sorted({each.type for each in container.streams})
        raise DecodeError(f"no video stream (found: {', '.join(others) or 'nothing'})")
    assert isinstance(stream, VideoStream)
    if stream.codec_context is None:
        raise DecodeError("video in a codec that FFmpeg does not decode")
    return stream


def read_header(stream: VideoStream, source: Source) -> Header:
    """The header of an opened video; DecodeError where its pictures are larger than allowed."""
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > source.max_pixels:
        raise DecodeError(f"pictures of {width} x {height}, the limit is {source.max_pixels} pixels")
    rate = stream.average_rate or stream.guessed_rate
    return Header(
        width=width,
        height=height,
        frame_seconds=float(1 / rate) if rate and rate > 0 else USUAL_FRAME_SECONDS,
        declared_frames=stream.frames if stream.frames > 0 else None,
        declared_seconds=_declared_seconds(stream),
    )


def inspect(source: Source) -> Header:
    """The header alone, for decoders other than PyAV."""
    with open_container(source) as container:
        return read_header(video_stream(container), source)


def describe(error: Exception) -> str:
    """FFmpeg's words for what went wrong, without the names of descriptors."""
    return str(getattr(error, "strerror", None) or error).strip() or type(error).__name__


def _declared_seconds(stream: VideoStream) -> float | None:
    """Matroska writes a stream's length as text, others as a number; that of a lone stream is the container's."""
    container: Any = stream.container
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    with suppress(KeyError, ValueError):
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    if len(container.streams) == 1 and container.duration is not None:
        return float(container.duration) / av.time_base
    return None
