"""PyAV: FFmpeg's own decoders, stepped packet by packet. A packet that does not decode is counted and skipped.

The header is read here for every decoder, so that all of them accept and refuse the same files. The container is opened
as the one that the file's first bytes show, and as nothing else.
"""

from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import Any, Final

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from cache.common.errors import DecodeError
from extract.decode.backends.packets import LostPackets
from extract.decode.backends.protocol import FrameHW3, Header, OpenVideo, VideoSource
from extract.decode.containers import FFMPEG_NAMES

USUAL_FRAME_SECONDS: Final = 1 / 25
"""Assumed if a container does not say how many frames a second it holds."""

MOST_DECLARED_FRAMES: Final = 1 << 53
"""More is taken for nothing declared: JSON and the ledger hold counts below it."""

# FFmpeg's own callback writes to descriptor 2, from any of its threads and without needing the interpreter.
av.logging.restore_default_callback()
av.logging.set_libav_level(av.logging.ERROR)


def read_header(source: VideoSource) -> Header:
    """The header alone, for the other decoders. Raises DecodeError as `open_video` does."""
    with _open_container(source) as container:
        return _header(_video_stream(container), source)


def open_video(source: VideoSource) -> OpenVideo:
    """Open with PyAV. Raises DecodeError if the header is damaged, too large, or of no video."""
    container = _open_container(source)
    try:
        return _PyavVideo(container, source)
    except BaseException:
        container.close()
        raise


class _PyavVideo:
    def __init__(self, container: InputContainer, source: VideoSource) -> None:
        self._container = container
        self._stream = _video_stream(container)
        self.header = _header(self._stream, source)
        context = self._stream.codec_context
        context.thread_count = 1
        context.options = {"max_pixels": str(source.max_pixels)}
        # AVI stores the order of decoding alone: its "presentation" times are FFmpeg's guesses, and out of order.
        self._use_dts = source.container == "avi"
        self._time_base = float(self._stream.time_base or 0)
        self._reformatter = VideoReformatter()
        self._frames = self._decode()
        self._frame: VideoFrame | None = None
        self._size: tuple[int, int] | None = None
        self._turns = 0
        self._size_change = ""
        self._lost = LostPackets(context.name)
        context.copy_opaque = True
        self._ended = False
        self.errors = 0

    @property
    def doubt(self) -> str:
        return "; ".join(filter(None, (self._lost.doubt(ended=self._ended), self._size_change)))

    @property
    def shape(self) -> tuple[int, int]:
        assert self._size is not None
        width, height = self._size
        return (width, height) if self._turns % 2 else (height, width)

    @property
    def seconds(self) -> float | None:
        assert self._frame is not None
        ticks = self._frame.dts if self._use_dts else self._frame.pts
        return None if ticks is None else ticks * self._time_base

    def advance(self) -> bool:
        self._frame = next(self._frames, None)
        if self._frame is None:
            self._ended = True
            return False
        size = (self._frame.width, self._frame.height)
        if self._size is None:
            self._size = size
            self._turns = _quarter_turns(self._frame.rotation)
        elif size != self._size and not self._size_change:
            self._size_change = f"picture size changes from {_text(self._size)} to {_text(size)}: scaled to the first"
        return True

    def copy_to(self, out_HW3: FrameHW3) -> None:
        assert self._frame is not None
        assert self._size is not None
        width, height = self._size
        try:
            picture = self._reformatter.reformat(self._frame, width, height, format="rgb24", threads=1)
        except (av.FFmpegError, ValueError) as error:
            raise DecodeError(f"pixel format {self._frame.format.name} not converted: {_describe(error)}") from error
        plane = picture.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        stored_HW3 = rows[:height, : width * 3].reshape(height, width, 3)
        np.copyto(out_HW3, np.rot90(stored_HW3, self._turns))

    def close(self) -> None:
        self._frames.close()
        self._frame = None
        self._container.close()

    def _decode(self) -> Generator[VideoFrame, None, None]:
        for packet in self._packets():
            try:
                for frame in self._stream.codec_context.decode(packet):
                    self._lost.received(frame)
                    yield frame
            except av.FFmpegError as error:
                if isinstance(error, MemoryError):
                    raise
                self.errors += 1

    def _packets(self) -> Iterator[Packet | None]:
        """The stream's packets, and None at the end, for the frames that the decoder still holds."""
        try:
            for packet in self._container.demux(self._stream):
                if packet.size:
                    self._lost.sent(packet)
                    yield packet
        except IndexError:
            pass  # PyAV raises it at the end of a file in which another stream appeared on the way (FLV, MPEG-PS)
        except av.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            self.errors += 1
        yield None


def _quarter_turns(degrees: float) -> int:
    """Counterclockwise quarter turns; 0 for an angle that is not a multiple of 90."""
    return round(degrees / 90) % 4 if degrees % 90 == 0 else 0


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _open_container(source: VideoSource) -> InputContainer:
    """Open as the container of the first bytes. Raises DecodeError if FFmpeg does not find it to be that."""
    try:
        return av.open(
            source.stream or source.name,
            mode="r",
            options={"format_whitelist": FFMPEG_NAMES[source.container], "protocol_whitelist": "file"},
            metadata_errors="ignore",
        )
    except (av.FFmpegError, ValueError) as error:
        raise DecodeError(f"damaged {source.container} header: {_describe(error)}") from error


def _video_stream(container: InputContainer) -> VideoStream:
    """The video stream to decode: FFmpeg's choice. A cover picture does not count."""
    stream = container.streams.best("video")
    if stream is None or stream.disposition & Disposition.attached_pic:
        found = {"cover picture" if each.type == "video" else each.type for each in container.streams}
        raise DecodeError(f"no video stream (found: {', '.join(sorted(found)) or 'nothing'})")
    assert isinstance(stream, VideoStream)
    if stream.codec_context is None:
        raise DecodeError("video in a codec that FFmpeg does not decode")
    return stream


def _header(stream: VideoStream, source: VideoSource) -> Header:
    """The header of an opened video. Raises DecodeError if its pictures are larger than allowed."""
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > source.max_pixels:
        raise DecodeError(f"pictures of {width} x {height}, the limit is {source.max_pixels} pixels")
    rate = stream.average_rate or stream.guessed_rate
    return Header(
        width=width,
        height=height,
        frame_seconds=float(1 / rate) if rate and rate > 0 else USUAL_FRAME_SECONDS,
        declared_frames=stream.frames if 0 < stream.frames < MOST_DECLARED_FRAMES else None,
        declared_seconds=_declared_seconds(stream),
        cut_short=source.cut_short,
    )


def _describe(error: Exception) -> str:
    """FFmpeg's text for an error, without the names of descriptors."""
    return str(getattr(error, "strerror", None) or error).strip() or type(error).__name__


def _declared_seconds(stream: VideoStream) -> float | None:
    """Matroska writes a stream's end as text, others its length; that of a lone stream is the container's."""
    container: Any = stream.container
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    with suppress(KeyError, ValueError):
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        start = float((stream.start_time or 0) * (stream.time_base or 0))
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds) - start
    if len(container.streams) == 1 and container.duration is not None:
        return float(container.duration) / av.time_base
    return None
