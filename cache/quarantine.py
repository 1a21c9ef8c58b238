"""Where a cache's damaged and unknown files go: nothing that could still be good is deleted, unless asked for."""

import os
from collections.abc import Iterable
from itertools import chain, count
from pathlib import Path
from typing import Final

from cache.common.errors import CacheError
from cache.common.files import fsync_folder, make_folder_durably, plain_files, remove

QUARANTINE: Final = "quarantine"
"""Folder, within the cache, for damaged and unknown files. Nothing reads it; its user may delete it."""


def quarantine(cache: Path, path: Path) -> list[str]:
    """Move a file or folder of the cache in folder `cache` to its quarantine, if it exists. Returns what was done."""
    if not os.path.lexists(path):
        return []
    _check_no_link(cache)
    make_folder_durably(cache / QUARANTINE)
    candidates = (cache / QUARANTINE / name for name in chain([path.name], (f"{path.name}.{n}" for n in count(1))))
    target = next(candidate for candidate in candidates if not os.path.lexists(candidate))
    path.rename(target)
    fsync_folder(target.parent)
    fsync_folder(path.parent)
    return [f"moved {path.name} to {target.relative_to(cache)}"]


def quarantined(cache: Path) -> list[Path]:
    """What is in the quarantine of the cache in folder `cache`."""
    _check_no_link(cache)
    return sorted((cache / QUARANTINE).iterdir()) if (cache / QUARANTINE).is_dir() else []


def delete(paths: Iterable[Path], *, dry_run: bool) -> list[str]:
    """Delete files and folders of a quarantine for good. Returns what was done, or would be."""
    done = []
    for path in paths:
        num_bytes = sum(file.lstat().st_size for file in plain_files(path))
        if not dry_run:
            remove(path)
        done.append(f"deleted {QUARANTINE}/{path.name} ({num_bytes:,} bytes)")
    return done


def _check_no_link(cache: Path) -> None:
    if (cache / QUARANTINE).is_symlink():
        raise CacheError(f"{cache / QUARANTINE} is a link; damaged files stay in the cache: remove the link")
