"""Clips of a video: which frames go together. Pure arithmetic, no I/O, no features."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Keep = Literal["first", "even"]


@dataclass(frozen=True, kw_only=True)
class ClipRule:
    """How a video is cut into clips; the defaults are the paper's words (section 4.2)."""

    length: int = 30
    """Frames in a clip."""
    stride: int = 8
    """Frames from one clip's start to the next one's."""
    max_clips: int = 20
    """Clips kept of one video."""
    keep: Keep = "first"
    """Which clips stay when there are more: the `first` ones (the paper's reading), or `even`ly spread ones."""
    fps: float | None = None
    """Frames a second that clips are counted in, by picking cached frames; None keeps the video's own rate."""

    def __post_init__(self) -> None:
        for name in ("length", "stride", "max_clips"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.keep not in ("first", "even"):
            raise ValueError(f"keep is {self.keep!r}; it must be 'first' or 'even'")
        if self.fps is not None and not 0 < self.fps < float("inf"):
            raise ValueError(f"fps is {self.fps}; it must be a positive number, or None for the video's own rate")

    def starts(self, num_frames: int) -> list[int]:
        """First frame of each clip; a video shorter than a clip gives one, which loops.

        num_frames=46, length=30, stride=8 -> 0, 8, 16
        num_frames=12, length=30, stride=8 -> 0
        """
        if num_frames < 1:
            raise ValueError(f"a video of {num_frames} frames has no clips")
        last = max(num_frames - self.length, 0)
        starts = range(0, last + 1, self.stride)
        if len(starts) <= self.max_clips:
            return list(starts)
        if self.keep == "first":
            return list(starts[: self.max_clips])
        chosen = np.linspace(0, len(starts) - 1, self.max_clips).round().astype(int)
        return [starts[i] for i in chosen]

    def resample(self, pts_seconds: NDArray[np.float64]) -> NDArray[np.int64]:
        """Indices of the frames shown at 0, 1/fps, 2/fps, ... seconds after the first frame, up to the last one.

            30 frames a second, fps=24 -> 0, 1, 2, 3, 5, 6, 7, 8, 10, ...
            fps=None                   -> 0, 1, 2, 3, 4, ...

        `pts_seconds` is `[F]` and ascending. A frame is shown from its own time until the next frame's.
        """
        if self.fps is None:
            return np.arange(len(pts_seconds))
        elapsed_F = np.asarray(pts_seconds, dtype=np.float64) - pts_seconds[0]
        # Times are stored rounded; a microsecond keeps k/fps from falling just before the frame it belongs to.
        tolerance = 1e-6
        count = int(np.floor((elapsed_F[-1] + tolerance) * self.fps)) + 1
        times = np.arange(count) / self.fps
        return np.searchsorted(elapsed_F, times + tolerance, side="right") - 1

    def frames(self, pts_seconds: NDArray[np.float64]) -> NDArray[np.int64]:
        """Frame indices of every clip, `[clips, length]`; clips of a short video loop it from its beginning."""
        shown = self.resample(pts_seconds)
        starts = np.asarray(self.starts(len(shown)), dtype=np.int64)
        return shown[(starts[:, None] + np.arange(self.length)) % len(shown)]

    def count(self, num_frames: int, *, native_fps: float | None = None) -> int:
        """Clips of a video of `num_frames` frames at the constant rate `native_fps` (needed when `fps` is set)."""
        if self.fps is not None:
            if native_fps is None:
                raise ValueError("native_fps is needed to count clips at another frame rate")
            num_frames = int(np.floor((num_frames - 1) / native_fps * self.fps + 1e-6)) + 1
        return len(self.starts(num_frames))
