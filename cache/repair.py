"""Mend a damaged cache: set damaged shards aside, queue their videos again. Only when asked."""

import os
from itertools import chain, count
from pathlib import Path

from cache.commit import discard, recover
from cache.common.errors import CacheError, DamageError, MrrnError
from cache.common.files import fsync_folder, make_folder_durably
from cache.dataset import Dataset, read_dataset
from cache.description import read_description
from cache.ledger import Ledger, broken_structure
from cache.remote.storage import Remote, log_problems, settle
from cache.store import FeatureCache
from cache.verify import Finding, verify

QUARANTINE = "quarantine"
"""Folder, within the cache, where damaged files go. Nothing reads it; delete it when it is of no more use."""


def repair(path: Path) -> list[str]:
    """Make the cache in `path` sound again, at the price of extracting some videos anew. What was done, in words.

    CacheError or DatasetError where cache.json or dataset.json are damaged: without them nobody knows what to keep.
    """
    description = read_description(path)
    dataset = read_dataset(path / "dataset.json")
    done: list[str] = []
    if not _ledger_works(path):
        done += [*_new_ledger(path, dataset), "made the ledger anew; failed videos will be tried again"]
    with FeatureCache.open(path) as cache:
        if cache.remote is not None:
            cache.remote.take(description)
            done += _follow_log(cache)
        done += recover(cache.destination)
        done += settle(cache) if cache.remote is not None else []
        # Some damage hides other damage: a row that cannot be read keeps the shards from being looked at.
        while findings := [finding for finding in verify(path) if not finding.harmless]:
            mended = [line for finding in findings for line in _mend(cache, finding)]
            if not mended:
                raise DamageError(f"{path} cannot be repaired: {findings[0].what}")
            # Rows that lacked a video of dataset.json come from there.
            if cache.remote is None:
                cache.replace_dataset(dataset)
            done += mended
        # Also what was struck out just now.
        done += settle(cache) if cache.remote is not None else []
    return done


def _new_ledger(path: Path, dataset: Dataset) -> list[str]:
    """Put an empty ledger in the place of the one that is there, which is set aside."""
    done: list[str] = []
    for name in ("ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm", "ledger.sqlite-journal"):
        done += _set_aside(path, path / name)
    new = path / f".tmp-{os.getpid()}-ledger.sqlite"
    Ledger.create(new, sorted((video.id, video.path) for video in dataset.videos)).close()
    new.rename(path / "ledger.sqlite")
    fsync_folder(path)
    return done


def _follow_log(cache: FeatureCache) -> list[str]:
    """Make the working copy's ledger anew where it is not what the records in the store lead to."""
    problems = list(log_problems(cache))
    if not problems:
        return []
    dataset = cache.dataset
    cache.ledger.close()
    done = _new_ledger(cache.path, dataset)
    assert cache.remote is not None
    cache.remote.catch_up(cache.ledger)
    return [*done, f"made the ledger anew from the records in the store ({'; '.join(problems)})"]


def _ledger_works(path: Path) -> bool:
    try:
        ledger = Ledger(path / "ledger.sqlite")
        with ledger.reading() as connection:
            broken = broken_structure(connection)
        ledger.shards()
    except MrrnError:
        return False
    return not broken


def _mend(cache: FeatureCache, finding: Finding) -> list[str]:
    if cache.remote is not None:
        return _mend_remote(cache, cache.remote, finding)
    with cache.ledger.transaction() as connection:
        if finding.shard is not None:
            queued = cache.ledger.forget_shard(connection, finding.shard.number)
            moved = _set_aside(cache.path, cache.path / "shards" / finding.shard.name)
            return [*moved, f"queued the {queued} videos of {finding.shard.name} again"]
        for video_id in finding.videos:
            cache.ledger.forget_video(connection, video_id)
    if not finding.videos:
        return []
    return [f"queued {len(finding.videos)} videos again ({finding.what})"]


def _mend_remote(cache: FeatureCache, remote: Remote, finding: Finding) -> list[str]:
    if finding.shard is None:
        return []
    discard(cache.path / "shards" / finding.shard.name)
    if finding.here_only:
        return [f"removed the damaged copy of {finding.shard.name}; it is fetched again when it is read"]
    remote.change(cache.ledger, "forget", forgotten=(finding.shard.number,))
    return [f"queued the {len(finding.videos)} videos of {finding.shard.name} again"]


def _set_aside(cache: Path, path: Path) -> list[str]:
    """Move a file or folder to the quarantine; nothing happens where it is gone already."""
    if not os.path.lexists(path):
        return []
    if (cache / QUARANTINE).is_symlink():
        raise CacheError(f"{cache / QUARANTINE} is a link; damaged files stay in the cache: remove the link")
    make_folder_durably(cache / QUARANTINE)
    candidates = (cache / QUARANTINE / name for name in chain([path.name], (f"{path.name}.{n}" for n in count(1))))
    aside = next(candidate for candidate in candidates if not os.path.lexists(candidate))
    path.rename(aside)
    fsync_folder(aside.parent)
    fsync_folder(path.parent)
    return [f"set {path.name} aside as {aside.relative_to(cache)}"]
