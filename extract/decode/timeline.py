"""Times of frames: ascending seconds from the times decoders report, and the frames that a lower rate keeps. Pure."""

import math
from dataclasses import dataclass
from typing import Final

LONGEST_GAP_SECONDS: Final = 600.0
"""Two frames further apart than this have damaged times: a picture may stand still for minutes, not for hours."""

SHORTEST_STEP_SECONDS: Final = 1e-3

SHORT_STEP_SECONDS: Final = 1 / 25
"""The most between the first two frames where their times are damaged: the header's average then is too."""


class Timeline:
    """Turns the times that a decoder reports into ascending times from zero.

    Real files report times that are missing, equal or out of order (AVI stores none at all). A time that is not after
    the previous one is replaced by the previous one plus the usual distance between frames. Where times jump by more
    than `LONGEST_GAP_SECONDS`, forward or backward, the jump is taken out, and what follows keeps its distances.

        frame 0 an hour early: 0, 3600.04, 3600.08, 3600.12 -> 0, 0.04, 0.08, 0.12
    """

    def __init__(self, frame_seconds: float) -> None:
        """`frame_seconds`: the usual distance between two frames, above zero."""
        assert frame_seconds > 0
        self._frame_seconds = frame_seconds
        self._offset: float | None = None
        """Added to reported times."""
        self._previous = -frame_seconds
        self._step = min(frame_seconds, SHORT_STEP_SECONDS)
        """The last distance that was believed."""
        self._placed = self._jumps = 0
        self._first_jump = ""

    @property
    def jumps(self) -> str:
        """The jumps that were taken out, as text; empty if there was none."""
        return self._first_jump + (f", and {self._jumps - 1} more jumps" if self._jumps > 1 else "")

    def place(self, reported_seconds: float | None) -> float:
        """The next frame's time in seconds since the first one's."""
        seconds = self._previous + self._frame_seconds
        if reported_seconds is not None and math.isfinite(reported_seconds):
            if self._offset is None:
                self._offset = seconds - reported_seconds
            believed = reported_seconds + self._offset
            gap = believed - self._previous
            if abs(gap) > LONGEST_GAP_SECONDS:
                seconds = self._previous + self._step
                self._offset = seconds - reported_seconds
                self._note_jump(gap)
            elif self._previous < believed:
                seconds = believed
                self._step = gap if self._placed and gap > SHORTEST_STEP_SECONDS else self._step
        self._previous = seconds
        self._placed += 1
        return seconds

    def _note_jump(self, gap: float) -> None:
        self._jumps += 1
        if self._jumps == 1:
            self._first_jump = f"times jump by {gap:+.0f} s at frame {self._placed}"


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which frames of a video are kept."""

    max_frames: int | None = None
    """Only the first `max_frames` kept frames; None for all."""
    fps: float | None = None
    """At most `fps` frames a second; None for all."""

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
