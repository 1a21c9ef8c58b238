"""New videos to classes: decode, features, three heads, fusion. The one place where fuse uses extract and train.

A new video takes the same path through the same code as one of a dataset: `extract.pipeline.extract_features`, the clip
rule of the runs, `train.score.score_clips`, `cache.aggregate`.

Shapes: N clips, F frames, K classes.

Predictions of new videos as text and as JSON.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from cache.aggregate import PAPER_WEIGHTS, clips_to_videos, fuse_levels
from cache.clips import ClipRule
from cache.common.errors import MrrnError, WeightsError
from cache.common.text import visible
from cache.common.workspace import Workspace
from cache.fingerprint import CENTER_VIEW, Level
from cache.store import FeatureCache
from extract.datasets import load_dataset
from extract.decode.pool import DecodePool, DecodeSettings, VideoEnd
from extract.network.weights import is_file_spec, load_weights
from extract.settings import ExtractSettings, settings_of

if TYPE_CHECKING:
    from extract.network.engine import Engine
    from extract.pipeline import VideoFeatures
    from train.config import RunConfig
    from train.heads import Head


Frames = NDArray[np.uint8]
"""`[F, H, W, 3]`"""

SAMPLED_FPS: Final = 4.0
"""Frames a second that are decoded to choose a few from."""


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Three trained heads that belong together, and what their features have to be made with."""

    heads: Mapping[Level, "Head"]
    classes: tuple[str, ...]
    clips: ClipRule
    identity: Mapping[str, Any]
    """Of the fingerprint: what the features depend on."""
    environment: Mapping[str, Any]
    """Of the fingerprint: what they were computed with."""
    fusion_weights: Mapping[Level, float]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the heads say of one video."""

    video: str
    """The path as it was given or found."""
    reason: str
    """Why there are no probabilities, or what is doubtful about the video; empty where all is well."""
    frames: int
    clips: int
    levels: Mapping[Level, NDArray[np.float64]]
    """`[K]` for each level; empty for a video that failed."""
    fused: NDArray[np.float64] | None
    """`[K]`; None for a video that failed."""
    features_seconds: float
    """Time from the video before it (the first: from the start) to this one's features: decoding beside the network."""
    decode_seconds: float
    """Time that decoding took, in its own process."""
    heads_seconds: float
    """Time that the three heads took."""


def heads_in(folders: Mapping[Level, Path], fusion_weights: Mapping[Level, float] = PAPER_WEIGHTS) -> Heads:
    """The heads in three run folders; WeightsError unless they are finished, of one cache, split and clip rule."""
    from train.checkpoint import load_head

    loaded = {level: load_head(folder) for level, folder in folders.items()}
    configs = {level: config for level, (_, config) in loaded.items()}
    _check_together(configs)
    first = configs["high"]
    return Heads(
        heads={level: head for level, (head, _) in loaded.items()},
        classes=first.classes,
        clips=first.clips,
        identity=first.fingerprint["identity"],
        environment=first.fingerprint["environment"],
        fusion_weights=fusion_weights,
    )


def _check_together(configs: Mapping[Level, "RunConfig"]) -> None:
    for name in ("dataset", "split", "pool", "classes", "clips", "cache_digest"):
        values = {level: getattr(config, name) for level, config in configs.items()}
        if any(value != values["high"] for value in values.values()):
            told = ", ".join(f"{level} {value!r}" for level, value in values.items())
            raise WeightsError(f"the heads do not belong together: {name}: {told}; train them again (`make train`)")
    for level, config in configs.items():
        if config.level != level:
            raise WeightsError(f"the head in the folder of level {level} is of level {config.level}; train it again")


def settings_for(heads: Heads, *, weights: str, device: str, jobs: int) -> ExtractSettings:
    """How the heads' features were made, on the device asked for; on a device of another kind in full precision."""
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
        jobs=jobs,
    )


def weights_for(heads: Heads, given: str | None, recorded: str | None = None) -> str:
    """Which weights to load: those given, else those recorded by the cache, else what the fingerprint names."""
    named = str(heads.identity["weights"])
    if given or recorded:
        return str(given or recorded)
    if is_file_spec(named):
        raise WeightsError(
            f"these heads need the backbone weights {named}, sha256 of their numbers "
            f"{heads.identity['weights_sha256']}; say where the file is with --weights"
        )
    return named


def open_backbone(heads: Heads, settings: ExtractSettings) -> "Engine":
    """The network that makes the heads' features; WeightsError where its weights are others than they learned from."""
    from extract.network.engine import open_engine

    weights = load_weights(settings.weights, settings.backbone)
    if weights.sha256 != heads.identity["weights_sha256"]:
        raise WeightsError(
            f"the heads were trained on features of weights {heads.identity['weights']} "
            f"(sha256 {heads.identity['weights_sha256']}); {weights.text} has sha256 {weights.sha256}: give the same "
            "weights with --weights"
        )
    return open_engine(settings, weights)


def predict(videos: Iterable[Path], heads: Heads, settings: ExtractSettings, engine: "Engine") -> Iterator[Prediction]:
    """What the heads say of each video, in the order in which they are finished; a bad file costs only itself."""
    from extract.pipeline import extract_features

    started = time.monotonic()
    for video in extract_features(((str(path), path) for path in videos), settings, engine=engine):
        yield predict_features(video, heads, features_seconds=time.monotonic() - started)
        started = time.monotonic()


def predict_features(video: "VideoFeatures", heads: Heads, *, features_seconds: float = 0.0) -> Prediction:
    """The heads' and the fused probabilities of one video's features (view 0), made in `features_seconds`."""
    from train.score import score_clips

    outcome = video.outcome
    if not video.features:
        nothing: Mapping[Level, NDArray[np.float64]] = {}
        return _prediction(video, features_seconds, clips=0, levels=nothing, fused=None, heads_seconds=0.0)
    started = time.monotonic()
    clips_NT = heads.clips.frames(video.pts_seconds)
    levels: dict[Level, NDArray[np.float64]] = {}
    for level, head in heads.heads.items():
        softmax_NK = score_clips(head, video.features[level][0].astype(np.float32), clips_NT)
        _, means = clips_to_videos([outcome.video_id] * len(softmax_NK), softmax_NK)
        levels[level] = means[0]
    fused = fuse_levels(levels, heads.fusion_weights)
    took = time.monotonic() - started
    return _prediction(video, features_seconds, clips=len(clips_NT), levels=levels, fused=fused, heads_seconds=took)


def _prediction(video: "VideoFeatures", features_seconds: float, **rest: Any) -> Prediction:
    outcome = video.outcome
    return Prediction(
        video=outcome.video_id,
        reason=outcome.reason,
        frames=outcome.num_frames,
        features_seconds=features_seconds,
        decode_seconds=outcome.seconds,
        **rest,
    )


def find_files(given: Iterable[Path]) -> list[Path]:
    """The files given, and the video files below the folders given; MrrnError names what is not there."""
    from extract.datasets.paths import find_videos, require_folder

    found: list[Path] = []
    for path in given:
        if path.is_dir():
            root = require_folder(path, "give a video file or a folder of them")
            inside = [path / name for name in find_videos(root)]
            if not inside:
                raise MrrnError(f"the folder {path} holds no video files")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise MrrnError(f"there is no file or folder {path}; give videos with VIDEO= or as arguments")
    return list(dict.fromkeys(found))


def sample_frames(workspace: Workspace, dataset: str, video_ids: Sequence[str], count: int) -> dict[str, Frames]:
    """`count` evenly spread frames of each video, as far as the dataset's files are still where extraction had them.

    Videos that are gone or cannot be decoded are left out: the features, not the files, are what results rest on.
    """
    with FeatureCache.open(workspace.cache(dataset)) as cache:
        data, source = cache.settings.get("data"), cache.dataset.source
        wanted = {video.id: video.path for video in cache.dataset.videos if video.id in set(video_ids)}
    try:
        where = Path(data) if data else None
        _, root = load_dataset(dataset, where, subset=True, work=workspace.root, source=source)
    except MrrnError:
        return {}
    paths = [(video, root / path) for video, path in wanted.items() if (root / path).is_file()]
    found: dict[str, list[Frames]] = {video: [] for video, _ in paths}
    ended: set[str] = set()
    with DecodePool(DecodeSettings(workers=1, fps=SAMPLED_FPS)) as pool:
        for item in pool.decode(paths):
            if isinstance(item, VideoEnd):
                ended |= {item.outcome.video_id} if item.outcome.num_frames else set()
            else:
                found[item.video_id].append(item.frames_FHW3.copy())
                item.release()
    return {video: _spread(np.concatenate(found[video]), count) for video in ended}


def _spread(frames_FHW3: Frames, count: int) -> Frames:
    places = np.linspace(0, len(frames_FHW3) - 1, count + 2)[1:-1].round().astype(int)
    return frames_FHW3[places]


TOP: Final = 5
"""Classes shown."""

_BAR: Final = 24
"""Characters of a bar that stands for 100 %."""


def ranked(probabilities_K: NDArray[np.float64], top: int = TOP) -> list[int]:
    """Indices of the most probable classes, the first one on a tie."""
    return np.argsort(-probabilities_K, kind="stable")[:top].tolist()


def as_text(prediction: "Prediction", classes: Sequence[str]) -> str:
    """The top classes with probabilities and bars, and how long it took."""
    name = visible(prediction.video)
    if prediction.fused is None:
        return f"{name}\n  not predicted: {visible(prediction.reason)}"
    width = max(len(visible(classes[index])) for index in ranked(prediction.fused))
    lines = [name]
    for index in ranked(prediction.fused):
        share = prediction.fused[index]
        bar = "█" * round(_BAR * share)
        lines.append(f"  {visible(classes[index]).ljust(width)}  {100 * share:5.1f} %  {bar}".rstrip())
    lines.append(
        f"  {prediction.frames} frames, {prediction.clips} clips; features {prediction.features_seconds:.2f} s "
        f"(decoding {prediction.decode_seconds:.2f} s beside the network), heads {prediction.heads_seconds:.2f} s"
    )
    if prediction.reason:
        lines.append(f"  note: {visible(prediction.reason)}")
    return "\n".join(lines)


def as_json(prediction: "Prediction", classes: Sequence[str]) -> dict[str, Any]:
    """Everything known of one prediction; probabilities of all classes, in label order, under `levels` and `fused`."""
    fused = prediction.fused
    return {
        "video": prediction.video,
        "predicted": fused is not None,
        "reason": prediction.reason,
        "top": []
        if fused is None
        else [{"class": classes[index], "probability": float(fused[index])} for index in ranked(fused)],
        "fused": None if fused is None else fused.tolist(),
        "levels": {level: values.tolist() for level, values in prediction.levels.items()},
        "frames": prediction.frames,
        "clips": prediction.clips,
        "features_seconds": prediction.features_seconds,
        "decode_seconds": prediction.decode_seconds,
        "heads_seconds": prediction.heads_seconds,
    }
