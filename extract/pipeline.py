"""Videos in, features and outcomes out: decode, pack, forward, unpack. No cache, no global state.

The same function serves extraction, the prediction of new videos, and extraction on many machines.

    decode workers (processes) -> blocks -> resize, crop -> batches of one shape -> network -> rows -> videos

Remote videos are downloaded before they are decoded. Memory is bounded by the decoders' rings of blocks, a few batches,
and the features of the videos under way.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache.fingerprint import Level
from cache.ledger import Outcome
from extract.datasets.remote import decode_with_downloads
from extract.decode import DecodePool, DecodeSettings, FrameBlock, VideoEnd
from extract.meter import Meter
from extract.network.engine import Engine, open_engine
from extract.network.packer import Packer, VideoRows
from extract.network.preprocess import crop_of
from extract.network.weights import load_weights
from extract.settings import ExtractSettings


@dataclass(frozen=True, kw_only=True)
class VideoFeatures:
    """What became of one video, and its features if it has some."""

    outcome: Outcome
    features: Mapping[Level, NDArray[np.float16]]
    """[V, F, C] of each level, for the frames that were asked for: all of them, usually. Empty for a failed video."""
    pts_seconds: NDArray[np.float64]
    """[F]: seconds from the first frame to each of these."""


def extract_features(
    videos: Iterable[tuple[str, Path]],
    settings: ExtractSettings,
    *,
    engine: Engine | None = None,
    meter: Meter | None = None,
    pool: DecodePool | None = None,
) -> Iterator[VideoFeatures]:
    """Features of `videos` (id, path), each once, in the order in which they are finished.

    A video that cannot be decoded comes out as failed, with the reason, and does not affect the others. `videos` is
    consumed as decoders become free, so it may be endless or block. Without an `engine` or a `pool` one is opened for
    `settings`.
    """
    engine = engine or open_engine(settings, load_weights(settings.weights, settings.backbone))
    with DecodePool(decode_settings(settings)) if pool is None else nullcontext(pool) as decoders:
        yield from features_of_frames(decode_with_downloads(decoders, videos), settings, engine, meter or Meter())


def decode_settings(settings: ExtractSettings) -> DecodeSettings:
    """The part of `settings` that concerns decoding."""
    return DecodeSettings(
        decoder=settings.decoder,
        workers=settings.jobs,
        limits=settings.limits,
        max_frames=settings.max_frames,
        fps=settings.fps,
    )


def features_of_frames(
    stream: Iterable[FrameBlock | VideoEnd], settings: ExtractSettings, engine: Engine, meter: Meter
) -> Iterator[VideoFeatures]:
    """The part after decoding: yields each video when its features are complete."""
    packer, videos = Packer(engine), dict[str, VideoRows]()
    for item in meter.waiting("decode", stream):
        if isinstance(item, VideoEnd):
            videos.setdefault(item.outcome.video_id, VideoRows()).outcome = item.outcome
        else:
            _pack(item, videos.setdefault(item.video_id, VideoRows()), settings, engine, packer, meter)
        for video in _finished(videos, settings, engine.columns):
            with meter.during("write"):
                yield video
    with meter.during("forward"):
        packer.flush()
    yield from _finished(videos, settings, engine.columns)


def stream_features(
    stream: Iterable[FrameBlock | VideoEnd], settings: ExtractSettings, engine: Engine
) -> Iterator[VideoFeatures | Outcome]:
    """One video's features, piece by piece as it is decoded, in constant memory; then its outcome.

    The frames are those of `features_of_frames`, to the bit. A video that fails may have given pieces before.
    """
    packer, video, meter, ended = Packer(engine), VideoRows(), Meter(), None
    for item in stream:
        if isinstance(item, VideoEnd):
            ended = item.outcome
            packer.flush()
        else:
            _pack(item, video, settings, engine, packer, meter)
        while video.features and not video.refused:
            count = len(video.features[0]) // len(settings.views)
            pts_F = np.concatenate(video.pts_seconds)
            piece = VideoRows(outcome=Outcome(video_id="", status="done"), pts_seconds=[pts_F[:count]])
            piece.features.append(video.features.pop(0))
            video.pts_seconds = [pts_F[count:]]
            made = _result(piece, settings, engine.columns)
            if made.outcome.status == "failed":
                video.refused = made.outcome.reason
            else:
                yield made
    assert ended is not None
    yield replace(ended, status="failed", reason=video.refused) if video.refused else ended


def _pack(
    block: FrameBlock, video: VideoRows, settings: ExtractSettings, engine: Engine, packer: Packer, meter: Meter
) -> None:
    """Resize, crop and pack a block; its memory goes back to the decoders as early as possible."""
    frames, height, width, _ = block.frames_FHW3.shape
    if engine.preprocess.is_too_narrow(height, width):
        shorter = engine.preprocess.resize
        video.refused = f"frames of {width} x {height} are too narrow to be scaled to a shorter side of {shorter}"
    if video.refused:
        block.release()
        return
    with meter.during("transfer"):
        crops = [crop_of(block.video_id, view, settings.views_seed) for view in settings.views]
        rows_FVHW3 = engine.prepare(block.frames_FHW3, crops)
        video.pts_seconds.append(np.array(block.pts_seconds_F, dtype=np.float64))
        block.release()
    with meter.during("forward"):
        packer.add(video, rows_FVHW3.flatten(0, 1))
    meter.frames += frames


def _finished(
    videos: dict[str, VideoRows], settings: ExtractSettings, columns: Mapping[Level, slice]
) -> list[VideoFeatures]:
    """Takes the videos that are complete, or failed, out of `videos`."""
    ended = [
        video_id
        for video_id, video in videos.items()
        if video.outcome and (video.fetched == video.packed or video.outcome.status == "failed")
    ]
    return [_result(videos.pop(video_id), settings, columns) for video_id in ended]


def _result(video: VideoRows, settings: ExtractSettings, columns: Mapping[Level, slice]) -> VideoFeatures:
    outcome = video.outcome
    assert outcome is not None
    if video.refused or outcome.status == "failed":
        return failed(outcome, video.refused or outcome.reason)
    views, frames = len(settings.views), sum(map(len, video.pts_seconds))
    if not frames:
        return failed(outcome, "none of the frames asked for are there")
    rows = np.concatenate(video.features)
    assert len(rows) == frames * views, f"{outcome.video_id}: frames were lost on the way to the network"
    features_VFC = rows.reshape(-1, views, rows.shape[1]).transpose(1, 0, 2)
    if problem := _not_finite(features_VFC, settings, columns):
        return failed(outcome, problem)
    return VideoFeatures(
        outcome=outcome,
        features={level: np.ascontiguousarray(features_VFC[:, :, span]) for level, span in columns.items()},
        pts_seconds=np.concatenate(video.pts_seconds),
    )


def failed(outcome: Outcome, reason: str) -> VideoFeatures:
    """A video without features, failed for `reason`."""
    return VideoFeatures(
        outcome=replace(outcome, status="failed", reason=reason, num_frames=0), features={}, pts_seconds=np.empty(0)
    )


def _not_finite(features_VFC: NDArray[np.float16], settings: ExtractSettings, columns: Mapping[Level, slice]) -> str:
    """Why features cannot be stored, if some are not finite in float16; empty if all are."""
    finite_F = np.isfinite(features_VFC).all(axis=(0, 2))
    if finite_F.all():
        return ""
    frame = int(np.argmin(finite_F))
    bad = [level for level, span in columns.items() if not np.isfinite(features_VFC[:, frame, span]).all()]
    return (
        f"features of frame {frame}, level {' and '.join(bad)}, are not finite or beyond 65504, the largest float16 "
        f"(weights {settings.weights}, precision {settings.precision}): try --precision bf16 or fp32, or other weights"
    )
