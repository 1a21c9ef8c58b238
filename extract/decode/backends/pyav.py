"""PyAV: FFmpeg's own decoders, stepped packet by packet; a packet that does not decode costs itself."""

from collections.abc import Generator, Iterator

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from cache.common.errors import DecodeError
from extract.decode.backends.header import describe, open_container, read_header, video_stream
from extract.decode.backends.protocol import FrameHW3, OpenVideo, Source


def open_video(source: Source) -> OpenVideo:
    """Open with PyAV."""
    container = open_container(source)
    try:
        return _PyavVideo(container, source)
    except BaseException:
        container.close()
        raise


class _PyavVideo:
    def __init__(self, container: InputContainer, source: Source) -> None:
        self._container = container
        self._stream = video_stream(container)
        self.header = read_header(self._stream, source)
        context = self._stream.codec_context
        context.thread_count = source.threads
        context.options = {"max_pixels": str(source.max_pixels)}
        # AVI stores the order of decoding alone: its "presentation" times are FFmpeg's guesses, and out of order.
        self._use_dts = source.container == "avi"
        self._time_base = float(self._stream.time_base or 0)
        self._reformatter = VideoReformatter()
        self._frames = self._decode()
        self._frame: VideoFrame | None = None
        self._size: tuple[int, int] | None = None
        self._turns = 0
        self.errors = 0
        self.note = ""

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
            return False
        size = (self._frame.width, self._frame.height)
        if self._size is None:
            self._size = size
            self._turns = _quarter_turns(self._frame.rotation)
        elif size != self._size and not self.note:
            self.note = f"picture size changes from {_text(self._size)} to {_text(size)}: scaled to the first"
        return True

    def copy_to(self, out_HW3: FrameHW3) -> None:
        assert self._frame is not None
        assert self._size is not None
        width, height = self._size
        try:
            picture = self._reformatter.reformat(self._frame, width, height, format="rgb24", threads=1)
        except (av.FFmpegError, ValueError) as error:
            raise DecodeError(f"pixel format {self._frame.format.name} not converted: {describe(error)}") from error
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
                yield from self._stream.codec_context.decode(packet)
            except av.FFmpegError as error:
                if isinstance(error, MemoryError):
                    raise
                self.errors += 1

    def _packets(self) -> Iterator[Packet | None]:
        """The stream's packets, and None at the end, for the frames that the decoder still holds."""
        try:
            for packet in self._container.demux(self._stream):
                if packet.size:
                    yield packet
        except av.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            self.errors += 1
        yield None


def _quarter_turns(degrees: float) -> int:
    """Counterclockwise quarter turns; an angle that is none is left alone."""
    return round(degrees / 90) % 4 if degrees % 90 == 0 else 0


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
