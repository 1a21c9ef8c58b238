"""Mend a damaged cache: quarantine damaged shards and queue their videos again. Only on request."""

import os
from pathlib import Path

from cache.commit import recover
from cache.common.errors import DamageError
from cache.common.files import fsync_folder
from cache.dataset import Dataset, read_dataset
from cache.description import read_description
from cache.ledger.consistency import broken_structure
from cache.ledger.database import Ledger
from cache.quarantine import delete, quarantine, quarantined
from cache.storage import Storage, ids_and_paths
from cache.store import FeatureCache
from cache.verify import verify


def repair(path: Path, *, prune: bool = False, dry_run: bool = False) -> list[str]:
    """Make the cache in `path` sound again, at the price of extracting some videos anew. Returns what was done.

    `prune`: also delete what was in the quarantine before, and objects that no record of the store refers to. Nothing
    else is deleted that could still be good. `dry_run`: change nothing, and return what would be done.

    Raises `CacheError` or `DatasetError` if cache.json or dataset.json is damaged: they cannot be made from the rest.
    """
    cache_id = read_description(path).cache_id
    dataset = read_dataset(path / "dataset.json")
    old = quarantined(path) if prune else []
    done: list[str] = []
    if not _ledger_works(path, cache_id):
        renewed = "made the ledger anew; failed videos will be tried again"
        if dry_run:
            return [renewed, "adopted the shards that are complete", *delete(old, dry_run=True)]
        done += [*_renew_ledger(path, dataset, cache_id), renewed]
    with FeatureCache.open(path) as cache:
        storage = cache.storage
        if dry_run:
            done += [f"made the ledger anew from the records ({problem})" for problem in storage.ledger_problems()]
            done += recover(storage, dry_run=True)
            done += storage.settle(prune=prune, dry_run=True)
            damage = [finding for finding in verify(path) if not finding.harmless]
            done += [f"queued {len(finding.videos)} videos again ({finding.what})" for finding in damage]
            return done + delete(old, dry_run=True)
        storage.acquire()
        done += _follow_log(storage)
        done += recover(storage)
        # Some damage hides other damage: a row that cannot be read keeps shards from being checked.
        while findings := [finding for finding in verify(path) if not finding.harmless]:
            mended = [line for finding in findings for line in storage.mend(finding)]
            if not mended:
                raise DamageError(f"{path} cannot be repaired: {findings[0].what}")
            done += mended
        # After what was forgotten just now.
        done += storage.settle(prune=prune, dry_run=False)
    return done + delete(old, dry_run=False)


def _renew_ledger(folder: Path, dataset: Dataset, cache_id: int) -> list[str]:
    """Move the ledger of the cache in `folder` to the quarantine and make a new one. Returns what was done."""
    done: list[str] = []
    for suffix in ("", "-wal", "-shm", "-journal"):
        done += quarantine(folder, folder / f"ledger.sqlite{suffix}")
    new = folder / f".tmp-{os.getpid()}-ledger.sqlite"
    Ledger.create(new, ids_and_paths(dataset), cache_id).close()
    new.rename(folder / "ledger.sqlite")
    fsync_folder(folder)
    return done


def _follow_log(storage: Storage) -> list[str]:
    """Make the working copy's ledger anew if the records in the store lead to another one."""
    problems = list(storage.ledger_problems())
    if not problems:
        return []
    storage.ledger.close()
    dataset = read_dataset(storage.folder / "dataset.json")
    done = _renew_ledger(storage.folder, dataset, storage.description.cache_id)
    storage.catch_up()
    return [*done, f"made the ledger anew from the records in the store ({'; '.join(problems)})"]


def _ledger_works(path: Path, cache_id: int) -> bool:
    """Raises `CacheError` if it is the ledger of another cache, or cannot be read now."""
    try:
        ledger = Ledger(path / "ledger.sqlite", cache_id)
        with ledger.reading() as connection:
            broken = broken_structure(connection)
        ledger.shards()
    except DamageError:
        return False
    return not broken
