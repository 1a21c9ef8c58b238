"""New videos to classes: decode, compute features, run the three heads, fuse; the answers as text and as JSON.

A new video takes the same path through the same code as one of a dataset: `extract.pipeline.features_of_frames`, the
clip rule of the runs, `train.score.score_clips`, `cache.aggregate`. Shapes: N clips, F frames, C channels, K classes.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cache.aggregate import PAPER_WEIGHTS, clips_to_videos, fuse_levels
from cache.clips import ClipRule
from cache.common.errors import MrrnError, ScoreError, WeightsError
from cache.common.text import visible, wrapped
from cache.fingerprint import CENTER_VIEW, Level, is_imported
from cache.ledger import Outcome
from extract.decode import DecodePool, VideoEnd, VideoRequest
from extract.fingerprint import settings_of
from extract.meter import Meter
from extract.network.engine import Engine
from extract.network.weights import Weights, is_file_spec, load_weights
from extract.pipeline import VideoFeatures, decode_settings, failed, features_of_frames
from extract.settings import ExtractSettings, device_defaults
from fuse.calibration import Calibration, scaled
from fuse.metrics import ranked
from fuse.scores import differences
from train.checkpoint import load_head
from train.config import RunConfig
from train.heads import Head
from train.score import score_clips

_BAR: Final = 24
"""Characters of a bar that stands for 100 %."""

MOST_CLIP_FRAMES: Final = 100_000
"""Frames of a clip up to which heads are believed; each video's clips are made as large."""

MOST_FPS: Final = 1000
"""Frames a second up to which a clip rule is believed."""

MOST_FRAMES: Final = 1 << 24
"""Frames at a clip rule's rate up to which a video is predicted: at 30 a second, six days."""


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Three trained heads that belong together, and what their features have to be made with."""

    heads: Mapping[Level, Head]
    classes: tuple[str, ...]
    """`[K]` names in label order."""
    clips: ClipRule
    identity: Mapping[str, Any]
    """Fingerprint fields that the features depend on."""
    environment: Mapping[str, Any]
    """Fingerprint fields that say where the features were computed."""
    fusion_weights: Mapping[Level, float]
    calibration: Calibration | None = None
    """None if there were no held-out runs to find it on."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The heads' prediction for one video."""

    video: str
    """The path as it was given or found."""
    reason: str
    """Why there are no probabilities, or why the video is suspect; empty for a sound video."""
    frames: int
    """Frames of the video, as far as it was decoded."""
    frames_read: int
    """Frames that went through the network."""
    clips_note: str
    """What has to be said where clips leave frames out; empty if they do not."""
    clips: int
    levels: Mapping[Level, NDArray[np.float64]]
    """`[K]` for each level; empty for a video that failed."""
    fused: NDArray[np.float64] | None
    """`[K]`; None for a video that failed."""
    calibrated: NDArray[np.float64] | None
    """`[K]`: `fused` at its temperature; None without calibration, or for a video that failed."""
    none_of_these: bool | None
    """Whether the probability of the first choice is below the threshold; None without calibration."""
    features_seconds: float
    """Time since the video before it (for the first: since the start) until its features were there."""
    decode_seconds: float
    """Time that decoding took, in its own process, beside the network."""
    heads_seconds: float
    """Time that the three heads took; 0 for a video that failed."""


def load_heads(
    folders: Mapping[Level, Path],
    fusion_weights: Mapping[Level, float] = PAPER_WEIGHTS,
    calibration: Calibration | None = None,
    bundled: str | None = None,
    clips: str | None = None,
) -> Heads:
    """The heads of three run folders.

    Their clip rule is the runs', changed by the text `bundled`, then by `clips` (`ClipRule.changed`). Raises
    `WeightsError` unless the runs are finished and of one dataset, cache, split, pooling and clip rule.
    """
    loaded = {level: load_head(folder) for level, folder in folders.items()}
    _check_together({level: config for level, (_, config) in loaded.items()})
    _, high = loaded["high"]
    check_not_imported(high.fingerprint["identity"])
    try:
        identity, environment = high.fingerprint["identity"], high.fingerprint["environment"]
        decode_settings(settings_of(identity, environment))
        _ = identity["weights"], identity["weights_sha256"], environment["device"]
    except (KeyError, TypeError, ValueError, MrrnError) as error:
        raise WeightsError(
            f"the heads do not say what their features were made with: {error!r}; train again"
        ) from error
    rule = high.clips
    for text in filter(None, (bundled, clips)):
        rule = rule.changed(text)
    if rule.length > MOST_CLIP_FRAMES or (rule.fps or 0) > MOST_FPS:
        raise WeightsError(f"the clip rule {rule} is beyond {MOST_CLIP_FRAMES:,} frames or {MOST_FPS} a second")
    return Heads(
        heads={level: head for level, (head, _) in loaded.items()},
        classes=high.classes,
        clips=rule,
        identity=identity,
        environment=environment,
        fusion_weights=fusion_weights,
        calibration=calibration,
    )


def check_not_imported(identity: Mapping[str, Any]) -> None:
    """Raises `ScoreError` if another program made the features: those of a new video cannot be made here."""
    if is_imported(identity):
        raise ScoreError(
            f"the heads read features that another program made ({visible(str(identity['backbone']))}), so those of "
            "new videos cannot be made here: extract the videos with a backbone of this program to predict others"
        )


def _check_together(configs: Mapping[Level, RunConfig]) -> None:
    for name in ("dataset", "split", "pool", "classes", "clips", "cache_digest"):
        if problems := differences(name, {level: getattr(config, name) for level, config in configs.items()}):
            raise WeightsError(f"the heads do not belong together: {problems[0]}; train them again (`make train`)")
    for level, config in configs.items():
        if config.level != level:
            raise WeightsError(f"the head in the folder of level {level} is of level {config.level}; train it again")


def settings_for(heads: Heads, *, weights: str, device: str, jobs: int) -> ExtractSettings:
    """How the heads' features were made, on the device asked for.

    On a device of another kind, where the last bits differ anyway, in full precision and in batches of its usual size.
    """
    from train.distributed import choose_device

    where = str(choose_device(device))
    same_kind = where.startswith("cuda") == str(heads.environment["device"]).startswith("cuda")
    made_with = settings_of(heads.identity, heads.environment)
    return replace(
        made_with,
        weights=weights,
        views=(CENTER_VIEW,),
        device=where,
        precision=made_with.precision if same_kind else "fp32",
        batch_frames=made_with.batch_frames if same_kind else device_defaults(where).batch_frames,
        jobs=jobs,
    )


def weights_for(heads: Heads, given: str | None, recorded: str | None = None) -> str:
    """Which backbone weights to load: those given, else those recorded by the cache, else the fingerprint's.

    Raises `WeightsError` if the fingerprint names a file, whose folder it does not know.
    """
    named = str(heads.identity["weights"])
    if given or recorded:
        return str(given or recorded)
    if is_file_spec(named):
        raise WeightsError(
            f"these heads need the backbone weights {named}, sha256 of their numbers "
            f"{heads.identity['weights_sha256']}; say where the file is with --weights (weights= in Python)"
        )
    return named


def backbone_weights(heads: Heads, settings: ExtractSettings) -> Weights:
    """The weights that make the heads' features. Raises `WeightsError` if they are not those of training."""
    weights = load_weights(settings.weights, settings.backbone)
    if weights.sha256 != heads.identity["weights_sha256"]:
        raise WeightsError(
            f"the heads were trained on features of weights {heads.identity['weights']} "
            f"(sha256 {heads.identity['weights_sha256']}); {weights.text} has sha256 {weights.sha256}: give the same "
            "weights with --weights (weights= in Python)"
        )
    if (now := str(weights.preprocess)) != (then := heads.identity.get("transform")):
        raise WeightsError(
            f"the heads were trained on pictures seen by {then!r}; {weights.text} is taken to see them by {now!r}: "
            f"give the weights under the name that they had, {heads.identity['weights']}"
        )
    return weights


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
    started, outcome = time.monotonic(), video.outcome
    read, frames, reason = len(video.pts_seconds), outcome.num_frames, outcome.reason
    if video.features and reading and read < len(reading.frames_R):
        video = failed(outcome, "the file changed while it was read")
        outcome, frames, reason = video.outcome, 0, video.outcome.reason
    elif video.features and reading:
        frames, reason = reading.outcome.num_frames, reading.outcome.reason
    levels: dict[Level, NDArray[np.float64]] = {}
    clips, fused, calibrated, refused = 0, None, None, None
    if video.features:
        if reading is None:
            clips_NT = heads.clips.frames(video.pts_seconds)
        else:
            clips_NT = np.searchsorted(reading.frames_R, reading.clips_NT)
        for level, head in heads.heads.items():
            softmax_NK = score_clips(head, video.features[level][0].astype(np.float32), clips_NT)
            levels[level] = clips_to_videos([outcome.video_id] * len(softmax_NK), softmax_NK)[1][0]
        clips, fused = len(clips_NT), fuse_levels(levels, heads.fusion_weights)
        if found := heads.calibration:
            calibrated = scaled(fused, found.temperatures["fused"])
            refused = bool(calibrated.max() < found.threshold)
    return Prediction(
        video=outcome.video_id,
        reason=reason,
        frames=frames,
        frames_read=read if levels else 0,
        clips_note=_clips_note(heads.clips, outcome, frames, clips_NT) if levels else "",
        clips=clips,
        levels=levels,
        fused=fused,
        calibrated=calibrated,
        none_of_these=refused,
        features_seconds=features_seconds,
        decode_seconds=outcome.seconds + (reading.outcome.seconds if reading else 0.0),
        heads_seconds=time.monotonic() - started if levels else 0.0,
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


def to_text(prediction: Prediction, classes: Sequence[str]) -> str:
    """The most probable classes with probabilities and bars, and how long it took; first "none of these", if so."""
    name = visible(prediction.video)
    if prediction.fused is None:
        return f"{name}\n  not predicted: {visible(prediction.reason)}"
    top = [(visible(classes[index]), share) for index, share in _top(prediction)]
    width = max(len(shown) for shown, _ in top)
    lines = [
        f"  {shown.ljust(width)}  {100 * share:5.1f} %  {'█' * round(_BAR * share)}".rstrip() for shown, share in top
    ]
    work = (
        f"  {prediction.frames} frames, {prediction.frames_read} read, {prediction.clips} clips; "
        f"features {prediction.features_seconds:.2f} s "
        f"(decoding {prediction.decode_seconds:.2f} s beside the network), heads {prediction.heads_seconds:.2f} s"
    )
    lines.append(wrapped(work, "    "))
    lines += [
        wrapped(f"  note: {visible(note)}", "    ") for note in (prediction.clips_note, prediction.reason) if note
    ]
    if prediction.none_of_these:
        lines.insert(0, f"  none of these (most like {top[0][0]}, {100 * top[0][1]:.0f} %)")
    return "\n".join([name, *lines])


def _top(prediction: Prediction) -> list[tuple[int, float]]:
    """The most probable classes, in the order of `fused`, with their calibrated probabilities if there are any."""
    if prediction.fused is None:
        return []
    shown = prediction.fused if prediction.calibrated is None else prediction.calibrated
    return [(index, float(shown[index])) for index in ranked(prediction.fused)]


def to_json(prediction: Prediction, classes: Sequence[str]) -> dict[str, Any]:
    """All of a prediction as JSON values; probabilities of all classes, in label order, as `levels` and `fused` say
    them, and as `calibrated`.
    """
    fused, calibrated = prediction.fused, prediction.calibrated
    return {
        "video": prediction.video,
        "predicted": fused is not None,
        "reason": prediction.reason,
        "top": [{"class": classes[index], "probability": share} for index, share in _top(prediction)],
        **vars(prediction),
        "calibrated": None if calibrated is None else calibrated.tolist(),
        "fused": None if fused is None else fused.tolist(),
        "levels": {level: values.tolist() for level, values in prediction.levels.items()},
    }
