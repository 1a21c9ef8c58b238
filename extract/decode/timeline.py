"""Times of frames: ascending seconds from the times decoders report, and the frames that a lower rate keeps. Pure."""

import math
from dataclasses import dataclass
from typing import Final

LONGEST_GAP_SECONDS: Final = 24 * 3600.0
"""A frame whose time is later than this after the previous frame has a damaged time."""


class Timeline:
    """Turns the times that a decoder reports into ascending times from zero.

    Real files report times that are missing, equal or out of order (AVI stores none at all). A time that is not after
    the previous one, or is absurdly later, is replaced by the previous one plus the usual distance between frames.
    """

    def __init__(self, frame_seconds: float) -> None:
        """`frame_seconds`: the usual distance between two frames, above zero."""
        assert frame_seconds > 0
        self._frame_seconds = frame_seconds
        self._first: float | None = None
        self._previous = -frame_seconds

    def place(self, reported_seconds: float | None) -> float:
        """The next frame's time in seconds since the first one's."""
        seconds = math.nan
        if reported_seconds is not None and math.isfinite(reported_seconds):
            if self._first is None:
                self._first = reported_seconds - (self._previous + self._frame_seconds)
            seconds = reported_seconds - self._first
        if not self._previous < seconds < self._previous + LONGEST_GAP_SECONDS:
            seconds = self._previous + self._frame_seconds
        self._previous = seconds
        return seconds


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which frames of a video are kept."""

    max_frames: int | None = None
    """Only the first `max_frames` kept frames; None for all."""
    fps: float | None = None
    """At most `fps` frames a second; None for all."""

    def __post_init__(self) -> None:
        if self.max_frames is not None and self.max_frames < 1:
            raise ValueError(f"max_frames is {self.max_frames}, it must be at least 1")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise ValueError(f"fps is {self.fps}, it must be above zero and finite")

    def keeps(self, last_kept_seconds: float | None, seconds: float) -> bool:
        """Whether the frame at `seconds` is kept: the first one, then the first one after each tick of `fps`.

            fps=10, frames at 0, 0.04, 0.08, 0.12, 0.16, 0.20 -> ticks 0 0 0 1 1 2 -> kept 0, 0.12, 0.20

        A video slower than `fps` keeps every frame, and none is repeated.
        """
        if self.fps is None or last_kept_seconds is None:
            return True
        # A little more than nothing allows for times that were rounded.
        tick, last_tick = (math.floor(each * self.fps + 1e-4) for each in (seconds, last_kept_seconds))
        return tick > last_tick
