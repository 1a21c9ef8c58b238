"""Take features out of a cache, into files that other programs read: npz or safetensors, a video or a level each."""

import fcntl
import filecmp
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cache.common.errors import CacheError
from cache.common.files import discard, fsync_folder, make_folder_durably, plain_files, remove
from cache.common.interrupts import done_so_far
from cache.common.progress import progress
from cache.reading import allocate, offsets_of, place_in, read_features
from cache.store import FeatureCache

Container = Literal["npz", "safetensors"]
Grouping = Literal["video", "level"]


def export(cache: FeatureCache, target: Path, container: Container, grouping: Grouping) -> int:
    """Write the features of all videos below `target`, a new folder that appears when complete. Returns how many files.

    By video: `<video id>.npz` with each level `[V, F, C]` float16 and `pts_seconds [F]`. By level: `<level>.npz` with
    `features [V, F, C]`, `offsets [N + 1]`, `pts_seconds [F]` and `video_ids`. Safetensors has no arrays of text: ids
    and views are JSON in its metadata.
    """
    wanted = cache.video_ids if grouping == "video" else cache.levels
    if os.path.lexists(target) and _names(target) != {f"{name}.{container}" for name in wanted}:
        raise CacheError(f"{target} is there already; choose a new folder, so that nothing is mixed or overwritten")
    temporary = target.with_name(f".tmp-{target.name}")
    with held_folder(temporary):
        files = _by_video(cache) if grouping == "video" else _by_level(cache)
        begins_anew = done_so_far(lambda: "nothing of the export is kept, it begins anew")
        with begins_anew, progress("exporting", len(wanted), "files") as shown:
            for written, (name, arrays, texts) in enumerate(files, 1):
                path = temporary / f"{name}.{container}"
                path.parent.mkdir(parents=True, exist_ok=True)
                _write(path, container, arrays, texts)
                shown.update(written)
        for folder in (temporary, *(path for path in temporary.rglob("*") if path.is_dir())):
            fsync_folder(folder)
        if not os.path.lexists(target):
            temporary.rename(target)
            fsync_folder(target.parent)
        elif any(not filecmp.cmp(temporary / name, target / name, shallow=False) for name in _names(target)):
            # Otherwise the same command was killed when all was done.
            raise CacheError(f"{target} is there already, with other features; choose a new folder")
    return len(wanted)


def _names(folder: Path) -> set[str]:
    """Paths of everything at or below `folder` that is no real folder."""
    return {str(path.relative_to(folder)) for path in plain_files(folder)}


@contextmanager
def held_folder(folder: Path) -> Iterator[None]:
    """Make the folder, empty, for this process alone; removed at the end unless it was renamed.

    Raises `CacheError` if another process has it.
    """
    make_folder_durably(folder.parent)
    if folder.is_symlink() or not folder.is_dir():
        # An earlier version followed a link.
        folder.unlink(missing_ok=True)
        folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for entry in folder.iterdir():
            remove(entry)
        yield
    except BlockingIOError:
        raise CacheError(f"another process writes {folder}: wait for it, or choose another folder") from None
    finally:
        os.close(descriptor)
        discard(folder)


_File = tuple[str, Mapping[str, np.ndarray], Mapping[str, tuple[str, ...]]]
"""Name without suffix, arrays, lists of texts."""


def _by_video(cache: FeatureCache) -> Iterator[_File]:
    for video_id in cache.video_ids:
        arrays: dict[str, np.ndarray] = {
            level: np.stack([cache.features(video_id, level, view) for view in range(len(cache.views))])
            for level in cache.levels
        }
        yield video_id, {**arrays, "pts_seconds": cache.pts_seconds(video_id)}, {"views": cache.views}


def _by_level(cache: FeatureCache) -> Iterator[_File]:
    places = cache.places
    offsets = offsets_of(places)
    for level in cache.levels:
        features_VFC = allocate((len(cache.views), int(offsets[-1]), cache.widths[level]), cache.path)
        pts_F = read_features(cache.pool, level, places, range(len(cache.views)), place_in(features_VFC))
        arrays: dict[str, np.ndarray] = {"features": features_VFC, "offsets": offsets, "pts_seconds": pts_F}
        yield level, arrays, {"video_ids": cache.video_ids, "views": cache.views}


def _write(
    path: Path, container: Container, arrays: Mapping[str, np.ndarray], texts: Mapping[str, tuple[str, ...]]
) -> None:
    if container == "npz":
        named: dict[str, Any] = {**arrays, **{name: np.array(text, dtype=np.str_) for name, text in texts.items()}}
        np.savez(path, allow_pickle=False, **named)
    else:
        from safetensors.numpy import save_file

        metadata = {name: json.dumps(text, ensure_ascii=False) for name, text in texts.items()}
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path, metadata=metadata)
    with path.open("rb") as written:
        os.fsync(written.fileno())
