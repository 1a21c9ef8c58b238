"""New videos to timelines: what every window of a video shows, while it is decoded, in constant memory.

A window is a clip of the heads' clip rule, one begins every `stride` frames, and each frame goes through the network
once. Windows overlap, so each one speaks for the part of the video around its middle; neighbouring parts of one class
are merged to a segment, and the segments cover the whole video.

Shapes: N windows, T frames of a window, F frames, C channels, K classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache.aggregate import fuse_levels
from cache.clips import TOLERANCE_SECONDS, ClipRule
from cache.fingerprint import Level
from cache.ledger import Outcome
from extract.decode import DecodePool, VideoRequest
from extract.network.engine import Engine
from extract.pipeline import VideoFeatures, stream_features
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


class _Resampler:
    """`ClipRule.resample` for a video that comes in pieces."""

    def __init__(self, rule: ClipRule) -> None:
        self._fps, self._tick, self._held = rule.fps, 0, np.empty(0, dtype=np.int64)

    def indices(self, pts_F: NDArray[np.float64], first: float, *, last: bool) -> NDArray[np.int64]:
        """The frames that are shown, one for each tick before the last of them; of the `last` piece, also at it.

        A piece's last frame has to come again as the first one of the next piece.
        """
        assert self._fps is not None
        until = pts_F[-1] - first
        count = int(np.floor((until + TOLERANCE_SECONDS) * self._fps)) + 1
        times = np.arange(self._tick, max(count, self._tick)) / self._fps
        shown = np.searchsorted(pts_F - first, times + TOLERANCE_SECONDS, side="right") - 1
        if not last:
            shown = shown[shown < len(pts_F) - 1]
        self._tick += len(shown)
        return shown


@dataclass
class _Windows:
    """Cuts a stream of features into windows and scores them. Holds the frames of one window and of one piece."""

    heads: Heads
    made: int = 0
    skip: int = 0
    """Frames to pass over before the next window, where windows are further apart than they are long."""
    pts_F: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    features: dict[Level, NDArray[np.float16]] = field(default_factory=dict)

    def add(self, pts_F: NDArray[np.float64], features: dict[Level, NDArray[np.float16]]) -> Iterator[Window]:
        """The windows that are complete with these frames."""
        self.pts_F = np.concatenate([self.pts_F, pts_F])
        self.features = {
            level: np.concatenate([self.features[level], new]) if self.features else new
            for level, new in features.items()
        }
        self._drop(0)
        rule = self.heads.clips
        count = max(0, (len(self.pts_F) - rule.length) // rule.stride + 1)
        if count:
            yield from self._score(np.arange(count)[:, None] * rule.stride + np.arange(rule.length))
            self._drop(count * rule.stride)

    def finish(self) -> Iterator[Window]:
        """The one window of a video that is shorter than a window: it loops."""
        if not self.made and len(self.pts_F):
            yield from self._score(np.arange(self.heads.clips.length)[None] % len(self.pts_F))

    def _drop(self, frames: int) -> None:
        self.skip += frames
        now = min(self.skip, len(self.pts_F))
        self.skip -= now
        self.pts_F = self.pts_F[now:]
        self.features = {level: each[now:] for level, each in self.features.items()}

    def _score(self, frames_NT: NDArray[np.int64]) -> Iterator[Window]:
        heads, rule = self.heads, self.heads.clips
        levels = {
            level: score_clips(head, self.features[level].astype(np.float32), frames_NT).astype(np.float64)
            for level, head in heads.heads.items()
        }
        fused_NK = fuse_levels(levels, heads.fusion_weights)
        before = max((rule.length - rule.stride) // 2, 0)
        for frames_T, fused_K in zip(frames_NT, fused_NK, strict=True):
            shown_K, label = fused_K, int(fused_K.argmax())
            if heads.calibration:
                shown_K = scaled(fused_K, heads.calibration.temperatures["fused"])
            refused = heads.calibration is not None and shown_K[label] < heads.calibration.threshold
            times_T = self.pts_F[frames_T]
            gap = float(times_T[-1] - times_T[-2]) if rule.length > 1 else 0.0
            own = self.pts_F[min(frames_T[0] + before, len(self.pts_F) - 1)] if self.made else times_T[0]
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
    windows, resampler = _Windows(heads), _Resampler(heads.clips)
    segment: Segment | None = None
    outcome, seconds, first = None, 0.0, None
    waiting: VideoFeatures | None = None

    def shown(piece: VideoFeatures, *, last: bool) -> tuple[NDArray[np.float64], dict[Level, NDArray[np.float16]]]:
        chosen = resampler.indices(piece.pts_seconds, first or 0.0, last=last)
        return piece.pts_seconds[chosen], {level: each[0][chosen] for level, each in piece.features.items()}

    def pieces() -> Iterator[Window]:
        nonlocal outcome, seconds, first, waiting
        stream = pool.decode([VideoRequest(str(path), path, follow_seconds=follow_seconds)])
        for item in stream_features(stream, settings, engine):
            if isinstance(item, Outcome):
                outcome = item
                continue
            first = float(item.pts_seconds[0]) if first is None else first
            gap = float(item.pts_seconds[-1] - (item.pts_seconds[-2] if len(item.pts_seconds) > 1 else seconds))
            seconds = float(item.pts_seconds[-1]) + max(gap, 0.0)
            if heads.clips.fps is None:
                yield from windows.add(item.pts_seconds, {level: each[0] for level, each in item.features.items()})
                continue
            piece = item if waiting is None else _joined(waiting, item)
            yield from windows.add(*shown(piece, last=False))
            waiting = _tail(piece)
        if waiting is not None:
            yield from windows.add(*shown(waiting, last=True))
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


def _tail(piece: VideoFeatures) -> VideoFeatures:
    """The piece's last frame."""
    return VideoFeatures(
        outcome=piece.outcome,
        features={level: each[:, -1:] for level, each in piece.features.items()},
        pts_seconds=piece.pts_seconds[-1:],
    )


def _joined(before: VideoFeatures, after: VideoFeatures) -> VideoFeatures:
    return VideoFeatures(
        outcome=after.outcome,
        features={
            level: np.concatenate([before.features[level], each], axis=1) for level, each in after.features.items()
        },
        pts_seconds=np.concatenate([before.pts_seconds, after.pts_seconds]),
    )
