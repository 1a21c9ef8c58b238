"""What is to come, before it begins: how many frames, by the sizes of the files, and whether the disk has room."""

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from statistics import fmean

from cache.common.errors import CacheError
from cache.store import FeatureCache
from extract.decode import DecodePool, DecodeSettings, VideoEnd
from extract.meter import Forecast
from extract.settings import ExtractSettings

RESERVE_BYTES = 64 << 20
"""Kept free beside the features, for the ledger and other programs."""

SAMPLED = 16
"""Videos whose headers are read."""

SIZED = 20_000
"""Files whose sizes are looked at, evenly among all of them."""

USUAL_FPS = 25.0
"""Assumed frame rate of videos that are thinned to fewer frames a second."""


def forecast(cache: FeatureCache, videos: Mapping[str, Path], settings: ExtractSettings) -> Forecast | None:
    """How many frames the pending ones of `videos` have, by the sizes of (some of) their files.

    Frames and bytes belong together as in the first thousand videos that have features, else as the headers of some
    videos declare. None if neither is known.
    """
    pending = [outcome.video_id for outcome in cache.ledger.outcomes("pending") if outcome.video_id in videos]
    here = [(video_id, videos[video_id]) for video_id in pending if videos[video_id].is_absolute()]
    files, done = cache.ledger.files(), list(islice(cache.ledger.outcomes("done"), 1000))
    extracted = {each.video_id: file.size for each in done if (file := files.get(each.video_id))}
    sizes = [size for _, path in here[:: len(here) // SIZED + 1] if (size := _file_size(path))]
    known = sizes or list(extracted.values())  # of remote ones, sizes are known once they were fetched
    usual_size = fmean(known) if known else 1.0
    # Frames as they would be kept without `max_frames`, and the file's size.
    sampled: list[tuple[float, float]] = []
    rate = min(1.0, (settings.fps or USUAL_FPS) / USUAL_FPS)
    for outcome in done:
        declared = rate * (outcome.declared_frames or 0) if settings.max_frames else 0
        sampled.append((max(outcome.num_frames, declared), extracted.get(outcome.video_id, usual_size)))
    if not sampled:
        for video_id, count in _declared_frames(here[:: len(here) // SAMPLED + 1], settings):
            sampled.append((rate * count, _file_size(videos[video_id]) or usual_size))
    frames, size = sum(each for each, _ in sampled), sum(each for _, each in sampled)
    if not frames or not size:
        return None
    most_frames = settings.max_frames or math.inf
    most_size = most_frames * size / frames if known else usual_size  # without any, all videos count the same
    return Forecast(
        size=fmean(min(each, most_size) for each in known or [usual_size]) * len(pending),
        usual_size=usual_size,
        most_size=most_size,
        sampled_frames=sum(min(each, most_frames) for each, _ in sampled),
        sampled_size=sum(min(each, most_size) for _, each in sampled),
    )


def _declared_frames(videos: Iterable[tuple[str, Path]], settings: ExtractSettings) -> Iterator[tuple[str, int]]:
    """The frames that headers declare, of the videos whose headers do; read in a child process, like all videos."""
    one_frame = DecodeSettings(decoder=settings.decoder, workers=1, limits=settings.limits, max_frames=1)
    with DecodePool(one_frame) as pool:
        for item in pool.decode(videos):
            if not isinstance(item, VideoEnd):
                item.release()
            elif count := item.outcome.declared_frames:
                yield item.outcome.video_id, count


def check_disk(cache: FeatureCache, settings: ExtractSettings, expected: Forecast | None) -> str:
    """What the videos will need and what is free, as text; empty if space is not limited (an object store).

    Raises `CacheError` if it cannot be enough.
    """
    free_bytes = cache.free_bytes()
    if free_bytes is None:
        return ""
    bytes_per_frame = len(settings.views) * sum(cache.widths.values()) * 2 + 8
    needed_bytes = int((expected.frames if expected else 0) * bytes_per_frame)
    text = f"{_size(free_bytes)} of disk free"
    if expected is not None:
        text = f"about {_size(needed_bytes)} of disk needed, {text}"
    if needed_bytes + RESERVE_BYTES > free_bytes:
        raise CacheError(
            f"{text}, in {cache.path}: make room, move the cache (WORK= or --work), or keep less with --max-frames, "
            "--fps, --levels or fewer --views"
        )
    return text


def _file_size(path: Path) -> float:
    """Size in bytes; 0 if there is no such file."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
