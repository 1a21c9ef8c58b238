"""What is about to be done: the data set on hand against the cache, how many videos, how much disk."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from cache.common.errors import CacheError, DatasetError
from cache.dataset import ADDRESS, Dataset, Video
from cache.fingerprint import CHANNELS
from cache.store import FeatureCache
from extract.decode import DecodePool, DecodeSettings, VideoEnd
from extract.settings import ExtractSettings

RESERVE_BYTES = 64 << 20
"""Kept free beside the features, for the ledger and other programs."""


SAMPLED = 16
"""Videos whose headers are looked at to say how much disk will be needed."""

USUAL_FPS = 25.0
"""Of videos that are to be thinned to fewer frames a second."""


@dataclass(frozen=True)
class Changes:
    """How the data set differs from the one the cache was made for."""

    new: tuple[str, ...]
    vanished: tuple[str, ...]
    """In the cache, and no longer in the data set; their features stay."""


def changes(cached: Dataset, found: Dataset) -> Changes:
    """New and vanished videos; DatasetError where the two have nothing in common."""
    ours, theirs = {video.id for video in found.videos}, {video.id for video in cached.videos}
    if theirs and not ours & theirs:
        raise DatasetError(
            f"none of the {len(theirs)} videos in the cache of {cached.name!r} is among the {len(ours)} found now; "
            "check DATA= (--data), or give another name with DATASET= (--dataset)"
        )
    return Changes(new=tuple(sorted(ours - theirs)), vanished=tuple(sorted(theirs - ours)))


def merged(cached: Dataset, found: Dataset) -> Dataset:
    """The data set as found, with the vanished videos whose class is still there: their features can be trained on."""
    present = {video.id for video in found.videos}
    labels = {name: label for label, name in enumerate(found.classes)}
    kept: list[Video] = []
    for video in cached.videos:
        name = None if video.label is None else cached.classes[video.label]
        if video.id not in present and (name is None or name in labels):
            kept.append(replace(video, label=None if name is None else labels[name]))
    return replace(found, videos=tuple(sorted((*found.videos, *kept), key=lambda video: video.id)))


def paths(dataset: Dataset, root: Path) -> Mapping[str, Path]:
    """The file of each video, or where it is to be fetched from (see `extract.datasets.remote`)."""
    return {
        video.id: Path(video.path) if ADDRESS.fullmatch(video.path) else root / video.path for video in dataset.videos
    }


def bytes_per_frame(settings: ExtractSettings) -> int:
    """What one frame of a video takes in the cache."""
    return len(settings.views) * sum(CHANNELS[level] for level in settings.levels) * 2 + 8


def check_disk(folder: Path, settings: ExtractSettings, pending: int, frames: float | None) -> str:
    """What `pending` videos of `frames` frames each (None: not known) will need and what is free, in words.

    CacheError where it cannot be enough.
    """
    free_bytes = shutil.disk_usage(folder).free
    needed_bytes = int(pending * (frames or 0) * bytes_per_frame(settings))
    text = f"{_size(free_bytes)} of disk free"
    if frames is not None:
        text = f"about {_size(needed_bytes)} of disk needed, {text}"
    if needed_bytes + RESERVE_BYTES > free_bytes:
        raise CacheError(
            f"{text}, in {folder}: make room, move the cache (WORK= or --work), or keep less with --max-frames, "
            "--fps, --levels or fewer --views"
        )
    return text


def frames_per_video(cache: FeatureCache, videos: Mapping[str, Path], settings: ExtractSettings) -> float | None:
    """Mean over the first thousand videos that have features, else over what the headers of some `videos` declare.

    None where neither says anything.
    """
    frames: list[float] = [outcome.num_frames for outcome in islice(cache.ledger.outcomes("done"), 1000)]
    frames = frames or _declared_frames(videos, settings)
    return sum(frames) / len(frames) if frames else None


def _declared_frames(videos: Mapping[str, Path], settings: ExtractSettings) -> list[float]:
    """Frames to keep of a few videos, by their headers, which are read where videos are decoded: in a child."""
    here = [(video_id, path) for video_id, path in videos.items() if path.is_absolute()]
    some = here[:: len(here) // SAMPLED + 1]
    declared = []
    one_frame = DecodeSettings(decoder=settings.decoder, workers=1, limits=settings.limits, max_frames=1)
    with DecodePool(one_frame) as pool:
        for item in pool.decode(some):
            if isinstance(item, VideoEnd):
                declared.append(item.outcome.declared_frames)
            else:
                item.release()
    rate = min(1.0, (settings.fps or USUAL_FPS) / USUAL_FPS)
    return [min(count * rate, settings.max_frames or count) for count in declared if count]


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
