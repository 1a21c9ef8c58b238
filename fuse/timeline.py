"""New videos to timelines: what every window of a video shows, while it is decoded, in constant memory.

A window is a clip of the heads' clip rule, one begins every `stride` frames, and each frame goes through the network
once. Windows overlap, so each one speaks for the part of the video around its middle; neighbouring parts of one class
are merged to a segment, and the segments cover the whole video.

Shapes: N windows, T frames of a window, F frames, C channels, K classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache.aggregate import fuse_levels
from cache.clips import TOLERANCE_SECONDS
from cache.fingerprint import Level
from cache.ledger import Outcome
from extract.decode import DecodePool, VideoRequest
from extract.network.engine import Engine
from extract.pipeline import stream_features
from extract.settings import ExtractSettings
from fuse.calibration import scaled
from fuse.trained import Heads
from train.score import score_clips


@dataclass(frozen=True, kw_only=True)
class Window:
    """What the heads see in one window."""

    start_seconds: float
    end_seconds: float
    own_start_seconds: float
    """Where the part begins that it speaks for; that part ends where the next window's begins."""
    probabilities_K: NDArray[np.float64]
    """The fused levels, calibrated if the heads are."""
    label: int | None
    """The most probable class; None for "none of these"."""


@dataclass(kw_only=True)
class Segment:
    """A part of a video in which all windows show one class."""

    label: int | None
    start_seconds: float
    end_seconds: float = 0.0
    windows: int = 0
    summed: float = 0.0
    """Sum of the windows' highest probabilities."""

    @property
    def probability(self) -> float:
        """Mean of the windows' highest probabilities."""
        return self.summed / self.windows


@dataclass(frozen=True, kw_only=True)
class TimelineEnd:
    """What became of a video, after its last segment."""

    outcome: Outcome
    windows: int
    seconds: float


Event = Window | Segment | TimelineEnd


@dataclass(frozen=True)
class _Frames:
    """Frames that follow one another: times, and features `[F, C]` of each level."""

    pts_F: NDArray[np.float64]
    features: dict[Level, NDArray[np.float16]]

    def at(self, places: slice | NDArray[np.int64]) -> "_Frames":
        """Those at some places."""
        return _Frames(self.pts_F[places], {level: each[places] for level, each in self.features.items()})

    def before(self, more: "_Frames") -> "_Frames":
        """These, and `more` after them."""
        features = {level: np.concatenate([each, more.features[level]]) for level, each in self.features.items()}
        return _Frames(np.concatenate([self.pts_F, more.pts_F]), features)


class _Resampler:
    """`ClipRule.resample` for a video that comes in pieces."""

    def __init__(self, fps: float) -> None:
        self._fps, self._tick, self._first = fps, 0, 0.0
        self.held: _Frames | None = None
        """The last frame: it may be shown again, beside the next piece."""

    def add(self, frames: _Frames) -> _Frames:
        """The frames that are shown at the ticks before the last of them."""
        if self.held is None:
            self._first = float(frames.pts_F[0])
        else:
            frames = self.held.before(frames)
        shown = self._shown(frames)
        shown = shown[shown < len(frames.pts_F) - 1]
        self._tick += len(shown)
        self.held = frames.at(slice(-1, None))
        return frames.at(shown)

    def rest(self) -> _Frames:
        """The last frame, as often as it is still shown."""
        assert self.held is not None
        return self.held.at(self._shown(self.held))

    def _shown(self, frames: _Frames) -> NDArray[np.int64]:
        """The place of the frame at each tick up to the last frame."""
        seconds_F = frames.pts_F - self._first
        count = int(np.floor((seconds_F[-1] + TOLERANCE_SECONDS) * self._fps)) + 1
        times = np.arange(self._tick, max(count, self._tick)) / self._fps
        return np.searchsorted(seconds_F, times + TOLERANCE_SECONDS, side="right") - 1


@dataclass
class _Windows:
    """Cuts a stream of features into windows and scores them. Holds the frames of one window and of one piece."""

    heads: Heads
    made: int = 0
    skip: int = 0
    """Frames to pass over before the next window, where windows are further apart than they are long."""
    held: _Frames | None = None

    def add(self, frames: _Frames) -> Iterator[Window]:
        """The windows that are complete with these frames."""
        self.held = held = self._skipped(self.held.before(frames) if self.held else frames)
        rule = self.heads.clips
        count = max(0, (len(held.pts_F) - rule.length) // rule.stride + 1)
        if count:
            yield from self._score(held, np.arange(count)[:, None] * rule.stride + np.arange(rule.length))
            self.skip += count * rule.stride
            self.held = self._skipped(held)

    def finish(self) -> Iterator[Window]:
        """The one window of a video that is shorter than a window: it loops."""
        if not self.made and self.held and len(self.held.pts_F):
            yield from self._score(self.held, np.arange(self.heads.clips.length)[None] % len(self.held.pts_F))

    def _skipped(self, frames: _Frames) -> _Frames:
        now = min(self.skip, len(frames.pts_F))
        self.skip -= now
        return frames.at(slice(now, None))

    def _score(self, held: _Frames, frames_NT: NDArray[np.int64]) -> Iterator[Window]:
        heads, rule = self.heads, self.heads.clips
        levels = {
            level: score_clips(head, held.features[level].astype(np.float32), frames_NT).astype(np.float64)
            for level, head in heads.heads.items()
        }
        fused_NK = fuse_levels(levels, heads.fusion_weights)
        before = max((rule.length - rule.stride) // 2, 0)
        for frames_T, fused_K in zip(frames_NT, fused_NK, strict=True):
            shown_K, label = fused_K, int(fused_K.argmax())
            if heads.calibration:
                shown_K = scaled(fused_K, heads.calibration.temperatures["fused"])
            refused = heads.calibration is not None and shown_K[label] < heads.calibration.threshold
            times_T = held.pts_F[frames_T]
            gap = float(times_T[-1] - times_T[-2]) if rule.length > 1 else 0.0
            own = held.pts_F[min(frames_T[0] + before, len(held.pts_F) - 1)] if self.made else times_T[0]
            self.made += 1
            yield Window(
                start_seconds=float(times_T[0]),
                end_seconds=float(times_T.max()) + max(gap, 0.0),
                own_start_seconds=float(own),
                probabilities_K=shown_K,
                label=None if refused else label,
            )


def timeline(
    path: Path,
    heads: Heads,
    settings: ExtractSettings,
    engine: Engine,
    pool: DecodePool,
    follow_seconds: float | None = None,
) -> Iterator[Event]:
    """The windows of one video as they are computed, each segment when it ends, and the video's end.

    `follow_seconds`: as in `VideoRequest`.
    """
    windows, resampler = _Windows(heads), _Resampler(heads.clips.fps) if heads.clips.fps else None
    segment: Segment | None = None
    outcome, seconds = None, 0.0

    def pieces() -> Iterator[Window]:
        nonlocal outcome, seconds
        stream = pool.decode([VideoRequest(str(path), path, follow_seconds=follow_seconds)])
        for item in stream_features(stream, settings, engine):
            if isinstance(item, Outcome):
                outcome = item
                continue
            times_F = item.pts_seconds
            gap = float(times_F[-1] - (times_F[-2] if len(times_F) > 1 else seconds))
            seconds = float(times_F[-1]) + max(gap, 0.0)
            frames = _Frames(times_F, {level: each[0] for level, each in item.features.items()})
            yield from windows.add(resampler.add(frames) if resampler else frames)
        if resampler and resampler.held:
            yield from windows.add(resampler.rest())
        yield from windows.finish()

    for window in pieces():
        yield window
        if segment is None or segment.label != window.label:
            if segment is not None:
                segment.end_seconds = window.own_start_seconds
                yield segment
            segment = Segment(label=window.label, start_seconds=window.own_start_seconds)
        segment.windows += 1
        segment.summed += float(window.probabilities_K.max())
    if segment is not None:
        segment.end_seconds = seconds
        yield segment
    assert outcome is not None
    yield TimelineEnd(outcome=outcome, windows=windows.made, seconds=seconds)
