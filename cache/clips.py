"""Clips of a video: which frames go together. Pure arithmetic, no I/O, no features."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

if TYPE_CHECKING:  # the command lines' help needs this file, and no numpy
    import numpy as np
    from numpy.typing import NDArray

Keep = Literal["first", "even", "all"]

_PARTS: Final[Mapping[str, tuple[str, Callable[[str], Any]]]] = {
    "length": ("length", int),
    "stride": ("stride", int),
    "max": ("max_clips", int),
    "keep": ("keep", str),
    "fps": ("fps", lambda text: float(text) if text else None),
}
"""Parts of a rule as text: the name of each, its field, and how its value is read."""

CLIPS_HELP: Final = (
    "How videos are cut into clips; parts that are not named stay as they are. length, stride: frames; max: clips of a "
    "video; keep: its first ones, even (spread over the whole video) or all; fps: frames a second, empty for the "
    "video's own."
)
"""Help of the option `--clips`."""

TOLERANCE_SECONDS: Final = 1e-6
"""Times are stored rounded; this keeps k/fps from falling just before the frame it belongs to."""

NOTED_SHARE: Final = 0.01
"""Share of frames in no clip above which outputs say so."""

CLIPS_FORM: Final = "length=30,stride=8,max=20,keep=first|even|all,fps="
"""What the option takes, with the paper's values."""


@dataclass(frozen=True, kw_only=True)
class ClipRule:
    """How a video is cut into clips; the defaults are the paper's words (section 4.2)."""

    length: int = 30
    """Frames in a clip."""
    stride: int = 8
    """Frames from one clip's start to the next one's."""
    max_clips: int = 20
    """Clips kept of one video; without meaning where `keep` is `all`."""
    keep: Keep = "first"
    """Which clips stay when there are more: the `first` ones (the paper's reading), `even`ly spread ones, or `all`."""
    fps: float | None = None
    """Frames a second that clips are counted in, by picking cached frames; None keeps the video's own rate."""

    def __post_init__(self) -> None:
        for name in ("length", "stride", "max_clips"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.keep not in get_args(Keep):
            raise ValueError(f"keep is {self.keep!r}; it must be one of {', '.join(get_args(Keep))}")
        if self.fps is not None and not 0 < self.fps < float("inf"):
            raise ValueError(f"fps is {self.fps}; it must be a positive number, or None for the video's own rate")

    def __str__(self) -> str:
        """The rule as `changed` reads it: `length=30,stride=8,max=20,keep=first,fps=`."""
        values = {name: getattr(self, field) for name, (field, _) in _PARTS.items()}
        values["fps"] = "" if self.fps is None else f"{self.fps:g}"
        if self.keep == "all":
            del values["max"]
        return ",".join(f"{name}={value}" for name, value in values.items())

    def changed(self, text: str) -> "ClipRule":
        """Returns this rule with the parts that `text` names: `keep=even,max=40`. Raises ValueError for other text."""
        given: dict[str, str] = {}
        for part in text.split(","):
            name, equals, value = part.strip().partition("=")
            if name not in _PARTS or not equals or name in given:
                raise ValueError(f"{part.strip()!r} in {text!r}: expected parts of {CLIPS_FORM}, each once")
            given[name] = value
        changes = {}
        for name, value in given.items():
            field, read = _PARTS[name]
            try:
                changes[field] = read(value)
            except ValueError:
                raise ValueError(f"{name}={value} in {text!r}: expected a number, as in {CLIPS_FORM}") from None
        if given.get("keep") == "all" and "max" in given:
            raise ValueError(f"{text!r}: keep=all keeps every clip, so that max has no meaning; leave one of them out")
        return replace(self, **changes)

    @property
    def words(self) -> str:
        """The rule for people."""
        rate = "the native frame rate" if self.fps is None else f"{self.fps:g} frames a second"
        which = {"first": "the first", "even": "evenly spread"}
        kept = "all of a video" if self.keep == "all" else f"at most {self.max_clips} of a video ({which[self.keep]})"
        return f"{self.length} frames at {rate}, a clip every {self.stride} frames, {kept}"

    def note(self, unread: int, frames: int, whose: str) -> str:
        """What has to be said where `unread` of `frames` frames are in no clip; empty up to `NOTED_SHARE` of them.

        `whose` says of what they are the frames: "the scored videos'".
        """
        if unread <= NOTED_SHARE * frames:
            return ""
        cut = "" if self.keep == "all" else "; --clips keep=all reads all"
        return f"clips: {100 * unread / frames:.0f} % of {whose} frames are in no clip ({self.words}{cut})"

    def starts(self, num_frames: int) -> list[int]:
        """First frame of each clip; a video shorter than a clip gives one, which loops.

        num_frames=46, length=30, stride=8 -> 0, 8, 16
        num_frames=12, length=30, stride=8 -> 0
        """
        if num_frames < 1:
            raise ValueError(f"a video of {num_frames} frames has no clips")
        last = max(num_frames - self.length, 0)
        starts = range(0, last + 1, self.stride)
        if self.keep == "all" or len(starts) <= self.max_clips:
            return list(starts)
        if self.keep == "first":
            return list(starts[: self.max_clips])
        import numpy as np

        chosen = np.linspace(0, len(starts) - 1, self.max_clips).round().astype(int)
        return [starts[i] for i in chosen]

    def resample(self, pts_seconds: "NDArray[np.float64]") -> "NDArray[np.int64]":
        """Indices of the frames shown at 0, 1/fps, 2/fps, ... seconds after the first frame, up to the last one.

            30 frames a second, fps=24 -> 0, 1, 2, 3, 5, 6, 7, 8, 10, ...
            fps=None                   -> 0, 1, 2, 3, 4, ...

        `pts_seconds` is `[F]` and ascending. A frame is shown from its own time until the next frame's.
        """
        import numpy as np

        if self.fps is None:
            return np.arange(len(pts_seconds))
        elapsed_F = np.asarray(pts_seconds, dtype=np.float64) - pts_seconds[0]
        count = int(np.floor((elapsed_F[-1] + TOLERANCE_SECONDS) * self.fps)) + 1
        times = np.arange(count) / self.fps
        return np.searchsorted(elapsed_F, times + TOLERANCE_SECONDS, side="right") - 1

    def frames(self, pts_seconds: "NDArray[np.float64]") -> "NDArray[np.int64]":
        """Frame indices of every clip, `[clips, length]`; clips of a short video loop it from its beginning."""
        import numpy as np

        shown = self.resample(pts_seconds)
        starts = np.asarray(self.starts(len(shown)), dtype=np.int64)
        return shown[(starts[:, None] + np.arange(self.length)) % len(shown)]

    def first_frames(self) -> int | None:
        """Frames from a video's beginning that its clips can lie in; None if that depends on the video."""
        if self.keep != "first" or self.fps is not None:
            return None
        return (self.max_clips - 1) * self.stride + self.length

    def count(self, num_frames: int, *, native_fps: float | None = None) -> int:
        """Clips of a video of `num_frames` frames at the constant rate `native_fps` (needed when `fps` is set)."""
        if self.fps is not None:
            if native_fps is None:
                raise ValueError("native_fps is needed to count clips at another frame rate")
            num_frames = math.floor((num_frames - 1) / native_fps * self.fps + 1e-6) + 1
        return len(self.starts(num_frames))
