"""A video file to blocks of frames, inside a worker: recognise, open, step, sample, pack; then judge the result.

Shapes: F frames of a block, H rows, W columns; pictures are 8-bit RGB.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from cache.common.errors import DecodeError
from extract.decode.backends.protocol import Header, OpenDecoder, OpenVideo, VideoSource
from extract.decode.completeness import missing_bytes
from extract.decode.containers import open_regular
from extract.decode.follow import FollowedFile
from extract.decode.timeline import Sampling, Timeline
from extract.decode.types import BLOCK_BYTES, BLOCK_FRAMES, Limits, Spans

SLACK_SECONDS: Final = 1.0
"""Healthy files may end this much before their declared length (sound tracks are longer than picture tracks)."""

Buffer = NDArray[np.uint8]
"""Memory for one block, flat; at least as large as one frame."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Consecutive frames of one video (among the kept ones)."""

    first_frame: int
    """Index of the first one among the video's kept frames."""
    frames_FHW3: NDArray[np.uint8]
    """A view of the buffer it was decoded into."""
    pts_seconds_F: NDArray[np.float64]
    """Times since the video's first frame, ascending."""


@dataclass(kw_only=True)
class DecodeCounts:
    """What has been seen of a video so far."""

    decoded: int = 0
    """Frames decoded."""
    kept: int = 0
    """Frames that sampling keeps."""
    stopped: bool = False
    """Decoding ended because nothing behind was asked for, not because the video was over."""
    seconds: float = 0.0
    """Time of the last frame's end since the first one's start."""
    jumps: str = ""
    """Times of frames that were not believed, as text."""


@contextmanager
def opened(
    path: Path, open_decoder: OpenDecoder, limits: Limits, followed: FollowedFile | None = None
) -> Iterator[OpenVideo]:
    """The opened video at `path`, or the one that is `followed`, which is closed at the end.

    Raises DecodeError, with the reason, if it is refused.
    """
    with ExitStack() as stack:
        if followed is None:
            descriptor, container = open_regular(path, limits.file_bytes)
            stack.callback(os.close, descriptor)
            name, cut_short = f"/proc/self/fd/{descriptor}", missing_bytes(descriptor, container)
        else:
            stack.enter_context(closing(followed))
            name, container, cut_short = "", followed.container(), ""
        source = VideoSource(
            name=name,
            container=container,
            max_pixels=limits.pixels,
            cut_short=cut_short,
            stream=followed,
        )
        try:
            video = open_decoder(source)
        except DecodeError as error:
            raise DecodeError("; ".join(filter(None, (str(error), source.cut_short)))) from error
        with closing(video):
            yield video


class FrameReader:
    """One pass over an opened video, block by block; `counts` holds what has been seen so far."""

    def __init__(self, video: OpenVideo, sampling: Sampling, limits: Limits, spans: Spans | None = None) -> None:
        """`spans`: the kept frames to deliver, as in `VideoRequest`."""
        self.counts = DecodeCounts()
        self._video, self._sampling, self._limits, self._spans = video, sampling, limits, spans
        self._timeline = Timeline(video.header.frame_seconds)
        self._last_kept: float | None = None
        self.times: list[float] = []
        """If spans are given: the times of all kept frames so far."""

    def blocks(
        self, new_buffer: Callable[[], Buffer], tick: Callable[[], None], block_frames: int = BLOCK_FRAMES
    ) -> Iterator[Block]:
        """The video's kept frames. `new_buffer` gives memory for each block; `tick` is called at each decoded frame.

        Blocks end where a span does. Frames outside the spans are decoded, as others may need them, and not converted.
        """
        spans = iter([(0, sys.maxsize)] if self._spans is None else self._spans)
        start, stop = next(spans, (sys.maxsize, sys.maxsize))
        frames_FHW3, times = np.empty((0, 0, 0, 3), np.uint8), list[float]()
        for index, seconds in enumerate(self._kept_frames(tick)):
            if self._spans is not None:
                self.times.append(seconds)
            if index < start:
                continue
            if not times:
                frames_FHW3 = self._new_frames(new_buffer(), block_frames)
            self._video.copy_to(frames_FHW3[len(times)])
            times.append(seconds)
            if len(times) == len(frames_FHW3) or index + 1 == stop:
                yield self._block(frames_FHW3, times)
                times = []
            if index + 1 == stop:
                start, stop = next(spans, (sys.maxsize, sys.maxsize))
                if start == sys.maxsize:
                    self.counts.stopped = True
                    return
        if times:
            yield self._block(frames_FHW3, times)

    def _kept_frames(self, tick: Callable[[], None]) -> Iterator[float]:
        """Step to each frame that is kept; yields its time."""
        while self._video.advance():
            tick()
            seconds = self._timeline.place(self._video.seconds)
            self.counts.jumps = self._timeline.jumps
            self.counts.decoded += 1
            self.counts.seconds = seconds + self._video.header.frame_seconds
            if self.counts.decoded > self._limits.frames:
                raise DecodeError(f"more than {self._limits.frames} frames")
            if not self._sampling.keeps(self._last_kept, seconds):
                continue
            self._last_kept = seconds
            self.counts.kept += 1
            yield seconds
            if self.counts.kept == self._sampling.max_frames:
                self.counts.stopped = True
                return

    def _new_frames(self, buffer: Buffer, block_frames: int) -> NDArray[np.uint8]:
        """Room for a block in `buffer`, `[F, H, W, 3]`."""
        height, width = self._video.shape
        frame_bytes = height * width * 3
        if frame_bytes > len(buffer):
            raise DecodeError(f"pictures of {width} x {height}, the limit is {len(buffer) // 3} pixels")
        frames = max(1, min(block_frames, min(BLOCK_BYTES, len(buffer)) // frame_bytes))
        return buffer[: frames * frame_bytes].reshape(frames, height, width, 3)

    def _block(self, frames_FHW3: NDArray[np.uint8], times: list[float]) -> Block:
        first = self.counts.kept - len(times)
        return Block(first_frame=first, frames_FHW3=frames_FHW3[: len(times)], pts_seconds_F=np.array(times))


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What becomes of a decoded video."""

    status: Literal["done", "suspect", "failed"]

    reason: str
    """Why; for a video that is done, a note or nothing."""


def judge(counts: DecodeCounts, header: Header, decoder_errors: int, doubt: str = "") -> Verdict:
    """Status and reason of a video that was decoded to its end, from its header, counts and the decoder's errors.

    A doubt is something broken: errors, times that jump, a file without its end, or what the decoder gives as `doubt`.
    A header that declares another number of frames, or another length, is noted: healthy files do.
    """
    errors = f"{decoder_errors} decoder error{'s' if decoder_errors != 1 else ''}" if decoder_errors else ""
    cut_short = "" if counts.stopped else header.cut_short
    if not counts.decoded:
        return Verdict(status="failed", reason="; ".join(filter(None, ("no frames decoded", errors, cut_short))))
    doubts = [text for text in (cut_short, errors, doubt, counts.jumps) if text]
    notes = [text for text in (_difference(counts, header),) if text]
    return Verdict(status="suspect" if doubts else "done", reason="; ".join(doubts + notes))


def _difference(counts: DecodeCounts, header: Header) -> str:
    """What the header declares and decoding did not find; empty if they agree."""
    if counts.stopped or header.declared_frames == counts.decoded:
        return ""
    if header.declared_frames is not None:
        return f"decoded {counts.decoded} frame{'s' * (counts.decoded != 1)}, {header.declared_frames} declared"
    declared_seconds = header.declared_seconds
    if declared_seconds is not None and declared_seconds - counts.seconds > max(SLACK_SECONDS, declared_seconds / 50):
        return f"decoded {counts.seconds:.1f} s of {declared_seconds:.1f} s declared"
    return ""
