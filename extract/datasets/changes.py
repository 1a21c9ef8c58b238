"""Whether a video's file is still the one that was extracted: its size and time are looked at first, then its bytes.

Of a remote video its server is asked for size, tag (ETag) and time.
"""

import hashlib
import os
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

import xxhash

from cache.common.files import open_plain
from cache.common.progress import progress
from cache.ledger import FileState
from extract.datasets.remote import address_of, same_file

Change = Literal["changed", "touched", "unknown"]
"""Other bytes, or changed while it was extracted; the same bytes at another time; not known to the cache till now."""

THREADS: Final = 4
"""Files hashed at a time."""


def file_state(path: Path) -> FileState | None:
    """Size and time of a file, without its hash; None if it is not there, no plain file, or remote."""
    if address_of(path) is not None:
        return None
    try:
        found = path.stat()
    except OSError:
        return None
    return FileState(size=found.st_size, modified_ns=found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None


def hashed(path: Path, state: FileState) -> FileState:
    """`state` with the hash of the file's bytes; without one if the file is not in that state now, or unreadable."""
    try:
        with os.fdopen(open_plain(path.resolve()), "rb") as file:
            digest = hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()
    except OSError:
        return state
    return replace(state, hash=digest) if file_state(path) == state else state


def find_changes(
    extracted: Mapping[str, FileState | None], paths: Mapping[str, Path], remote: Mapping[str, FileState] = {}
) -> dict[Change, dict[str, FileState]]:
    """Compares the files as they were extracted (None if that is not known) with those at `paths`, by kind of change.

    `remote`: what servers say now of remote videos. Files that are as they were are in no kind, and neither are those
    that cannot be read now.
    """
    found: dict[Change, dict[str, FileState]] = {"changed": {}, "touched": {}, "unknown": {}}
    for video_id, answer in remote.items():
        before = extracted[video_id]
        if before is None:
            found["unknown"][video_id] = answer
        elif not same_file(before, answer):
            found["changed"][video_id] = answer
    states = {video_id: file_state(paths[video_id]) for video_id in extracted if video_id in paths}
    now = {video_id: state for video_id, state in states.items() if state is not None}
    doubtful = [each for each, state in now.items() if not _as_before(extracted[each], state)]
    if not doubtful:
        return found
    with progress("comparing", len(doubtful), "videos") as shown, ThreadPoolExecutor(THREADS) as threads:
        compared = threads.map(lambda each: _compare(extracted[each], now[each], paths[each]), doubtful)
        for done, (video_id, (change, state)) in enumerate(zip(doubtful, compared, strict=True), 1):
            if change is not None:
                found[change][video_id] = state
            shown.update(done)
    return found


def _as_before(before: FileState | None, now: FileState) -> bool:
    return before is not None and bool(before.hash) and replace(before, hash="") == now


def _compare(before: FileState | None, now: FileState, path: Path) -> tuple[Change | None, FileState]:
    # A file of another size is another file: its bytes need not be read.
    if before is not None and (not before.hash or before.size != now.size):
        return "changed", now
    now = hashed(path, now)
    if not now.hash:
        return None, now
    if before is None:
        return "unknown", now
    return ("touched" if now.hash == before.hash else "changed"), now
