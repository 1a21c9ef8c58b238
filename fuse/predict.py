"""New videos to classes: decode, compute features, run the three heads, fuse.

A new video takes the same path through the same code as one of a dataset: `extract.pipeline.features_of_frames`, the
clip rule of the runs, `train.score.score_clips`, `cache.aggregate`. Shapes: N clips, F frames, C channels, K classes.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cache.aggregate import clips_to_videos, fuse_levels
from cache.clips import ClipRule
from cache.fingerprint import Level
from cache.ledger import Outcome
from extract.decode import DecodePool, VideoEnd, VideoRequest
from extract.meter import Meter
from extract.network.engine import Engine
from extract.pipeline import VideoFeatures, decode_settings, failed, features_of_frames
from extract.settings import ExtractSettings
from fuse.calibration import scaled
from fuse.trained import Heads
from train.score import score_clips

MOST_FRAMES: Final = 1 << 24
"""Frames at a clip rule's rate up to which a video is predicted: at 30 a second, six days."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The heads' prediction for one video."""

    video: str
    """The path as it was given or found."""
    reason: str
    """Why there are no probabilities, or why the video is suspect; empty for a sound video."""
    frames: int
    """Frames of the video, as far as it was decoded."""
    frames_read: int = 0
    """Frames that went through the network."""
    clips_note: str = ""
    """What has to be said where clips leave frames out; empty if they do not."""
    clips: int = 0
    levels: Mapping[Level, NDArray[np.float64]] = field(default_factory=dict)
    """`[K]` for each level; empty for a video that failed."""
    fused: NDArray[np.float64] | None = None
    """`[K]`; None for a video that failed."""
    calibrated: NDArray[np.float64] | None = None
    """`[K]`: `fused` at its temperature; None without calibration, or for a video that failed."""
    none_of_these: bool | None = None
    """Whether the probability of the first choice is below the threshold; None without calibration."""
    features_seconds: float
    """Time since the video before it (for the first: since the start) until its features were there."""
    decode_seconds: float
    """Time that decoding took, in its own process, beside the network."""
    heads_seconds: float = 0.0
    """Time that the three heads took; 0 for a video that failed."""


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """Which of a video's frames its clips read."""

    outcome: Outcome
    """Of the whole video."""
    clips_NT: NDArray[np.int64]
    frames_R: NDArray[np.int64]
    """The frames that are in some clip, ascending."""


def predict(videos: Iterable[Path], heads: Heads, settings: ExtractSettings, engine: Engine) -> Iterator[Prediction]:
    """The prediction for each video, in the order in which they are finished; a bad file costs only itself.

    Only frames that are in a clip go through the network. Where clips depend on the video's length, it is decoded once
    more before, to count its frames; otherwise decoding ends with the last clip.
    """
    started = time.monotonic()
    readings: dict[str, _Reading] = {}
    unread: list[Outcome] = []
    decoding = decode_settings(settings)
    with DecodePool(decoding) as counter, DecodePool(decoding) as decoder:
        requests = _requests(videos, heads.clips, counter, readings, unread)
        for video in features_of_frames(decoder.decode(requests), settings, engine, Meter()):
            reading = readings.pop(video.outcome.video_id, None)
            yield _predict_features(video, reading, heads, time.monotonic() - started)
            started = time.monotonic()
    for outcome in unread:
        yield _predict_features(failed(outcome, outcome.reason), None, heads, 0.0)


def _requests(
    videos: Iterable[Path],
    rule: ClipRule,
    counter: DecodePool,
    readings: dict[str, _Reading],
    unread: list[Outcome],
) -> Iterator[VideoRequest]:
    """What to decode of each video. Adds to `readings` what was counted, and to `unread` videos that failed."""
    if (first := rule.first_frames()) is not None or (rule.keep == "all" and rule.fps is None):
        spans = None if first is None else ((0, first),)
        yield from (VideoRequest(str(path), path, spans) for path in videos)
        return
    # Frames are counted, and their times read, without conversion to RGB: little beside the network.
    for item in counter.decode(VideoRequest(str(path), path, ()) for path in videos):
        assert isinstance(item, VideoEnd), "no frames were asked for"
        outcome, pts_F = item.outcome, item.pts_seconds_F
        if outcome.status != "failed" and rule.fps and pts_F[-1] * rule.fps > MOST_FRAMES:
            outcome = replace(
                outcome, status="failed", reason=f"more than {MOST_FRAMES:,} frames at {rule.fps:g} a second"
            )
        if outcome.status == "failed":
            unread.append(outcome)
            continue
        clips_NT = rule.frames(pts_F)
        frames_R = np.unique(clips_NT)
        readings[outcome.video_id] = _Reading(outcome=outcome, clips_NT=clips_NT, frames_R=frames_R)
        yield VideoRequest(outcome.video_id, Path(outcome.video_id), _runs(frames_R))


def _runs(indices_R: NDArray[np.int64]) -> tuple[tuple[int, int], ...]:
    """Ascending indices as half-open spans."""
    parts = np.split(indices_R, np.flatnonzero(np.diff(indices_R) > 1) + 1)
    return tuple((int(part[0]), int(part[-1]) + 1) for part in parts)


def _predict_features(
    video: VideoFeatures, reading: _Reading | None, heads: Heads, features_seconds: float
) -> Prediction:
    """The prediction from one video's features (view 0), which took `features_seconds`.

    Without a `reading` they are those of the frames from its beginning.
    """
    started = time.monotonic()
    if video.features and reading and len(video.pts_seconds) < len(reading.frames_R):
        video = failed(video.outcome, "the file changed while it was read")
    outcome, decode_seconds = video.outcome, video.outcome.seconds + (reading.outcome.seconds if reading else 0.0)
    if not video.features:
        return Prediction(
            video=outcome.video_id,
            reason=outcome.reason,
            frames=outcome.num_frames,
            features_seconds=features_seconds,
            decode_seconds=decode_seconds,
        )
    if reading:
        whole, clips_NT = reading.outcome, np.searchsorted(reading.frames_R, reading.clips_NT)
    else:
        whole, clips_NT = outcome, heads.clips.frames(video.pts_seconds)
    levels = {}
    for level, head in heads.heads.items():
        softmax_NK = score_clips(head, video.features[level][0].astype(np.float32), clips_NT)
        levels[level] = clips_to_videos([outcome.video_id] * len(softmax_NK), softmax_NK)[1][0]
    fused, calibrated, refused = fuse_levels(levels, heads.fusion_weights), None, None
    if found := heads.calibration:
        calibrated = scaled(fused, found.temperatures["fused"])
        refused = bool(calibrated.max() < found.threshold)
    return Prediction(
        video=outcome.video_id,
        reason=whole.reason,
        frames=whole.num_frames,
        frames_read=len(video.pts_seconds),
        clips_note=_clips_note(heads.clips, outcome, whole.num_frames, clips_NT),
        clips=len(clips_NT),
        levels=levels,
        fused=fused,
        calibrated=calibrated,
        none_of_these=refused,
        features_seconds=features_seconds,
        decode_seconds=decode_seconds,
        heads_seconds=time.monotonic() - started,
    )


def _clips_note(rule: ClipRule, outcome: Outcome, frames: int, clips_NT: NDArray[np.int64]) -> str:
    """What has to be said of the frames of a video that are in no clip; may be empty.

    Of `frames` decoded frames; where decoding ended with the last clip, of those that the header declares.
    """
    read = len(np.unique(clips_NT))
    if frames != rule.first_frames():
        return rule.note(frames - read, frames, "the video's")
    if outcome.declared_frames is None:
        return f"clips: only the first {frames} frames were looked at ({rule.words}; --clips keep=all reads all)"
    note = rule.note(max(outcome.declared_frames - read, 0), outcome.declared_frames, "the video's")
    return note and f"{note}, by its header"
