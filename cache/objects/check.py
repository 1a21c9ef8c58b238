"""What `verify` and `repair` ask about a cache in an object store: is the log followed, what has no record."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from cache.aside import discard
from cache.dataset import check_relative_path, read_dataset
from cache.errors import UnsafePathError
from cache.ledger import Ledger
from cache.objects.records import MAX_FILES, is_hash, object_of, shard_object
from cache.objects.remote import find, read_dataset_object
from cache.recovery import adopt
from cache.rows import ShardRow
from cache.shards import SUFFIXES
from cache.shards.writing import hash_files

if TYPE_CHECKING:
    from cache.store import FeatureCache


@dataclass(frozen=True)
class Orphan:
    """Objects below shards/ that no record speaks of: of a commit that died, or of a shard that was forgotten."""

    name: str
    files: dict[str, int]
    """Size of each object by its path below `name`; of one object with that very name under the empty path."""


def log_problems(cache: "FeatureCache") -> Iterator[str]:
    """Where the working copy's ledger and dataset are not those that the log leads to, in words."""
    assert cache.remote is not None
    with tempfile.TemporaryDirectory(prefix="mrrn-log-") as folder:
        found = find(cache.remote.objects)
        if found is None:
            yield f"{cache.remote.location} holds no cache any more: its cache.json is missing"
            return
        dataset = read_dataset_object(cache.remote.objects, found[1])
        ledger = Ledger.create(
            Path(folder) / "ledger.sqlite", sorted((video.id, video.path) for video in dataset.videos)
        )
        cache.remote.catch_up(ledger)
        if (Path(folder) / "dataset.json").exists():
            dataset = read_dataset(Path(folder) / "dataset.json")
        ledgers = (ledger, cache.ledger)
        outcomes, places, shards = zip(
            *((list(one.outcomes()), one.places(), one.shards()) for one in ledgers), strict=True
        )
        ledger.close()
    if dataset != cache.dataset:
        yield "dataset.json of the working copy is not the one in the store"
    for what, (logged, here) in {"outcomes": outcomes, "places": places, "shards": shards}.items():
        if logged != here:
            yield f"the working copy's ledger has other {what} than the records in the store"


def orphans(cache: "FeatureCache") -> list[Orphan]:
    """What lies below shards/ in the store without a record, by a listing."""
    assert cache.remote is not None
    known = {object_of(row) for row in cache.ledger.shards()}
    found: dict[str, dict[str, int]] = {}
    for entry in cache.remote.objects.names("shards"):
        parts = PurePosixPath(entry.name).parts
        name = "/".join(parts[:2])
        if name not in known:
            found.setdefault(name, {})["/".join(parts[2:])] = entry.num_bytes
    return [Orphan(name, files) for name, files in found.items()]


def settle(cache: "FeatureCache") -> list[str]:
    """Adopt the orphans that are complete and whose videos are still wanted, remove the others; what was done."""
    assert cache.remote is not None
    left = orphans(cache)
    if left and cache.ledger.next_expiry() is not None:
        return [f"left {len(left)} shards without a record alone: an extraction is at work"]
    done = []
    for orphan in left:
        if _adopted(cache, orphan):
            done.append(f"adopted {orphan.name}, which was complete but not yet recorded")
        else:
            cache.remote.objects.delete([f"{orphan.name}/{file}" if file else orphan.name for file in orphan.files])
            done.append(f"removed {orphan.name}, which no record speaks of")
    return done


def _adopted(cache: "FeatureCache", orphan: Orphan) -> bool:
    assert cache.remote is not None
    digest = orphan.name.removeprefix("shards/").removesuffix(SUFFIXES[cache.backend])
    if shard_object(digest, SUFFIXES[cache.backend]) != orphan.name or not _plausible(digest, orphan.files):
        return False
    path = cache.remote.copy.new_name()
    try:
        cache.remote.copy.download(orphan.name, orphan.files, path)
        with cache.ledger.transaction() as connection:
            # Whatever is wrong with it ends here; an error of what follows is none of the orphan's.
            adoptable = adopt(cache.destination, connection, path, digest)
            if adoptable is None:
                return False
            outcomes, shard = adoptable
            cache.remote.commit(cache.ledger, connection, outcomes, shard, orphan.files)
            cache.remote.copy.keep(path, shard)
        return True
    finally:
        discard(path)


def _plausible(digest: str, files: dict[str, int]) -> bool:
    try:
        for name in files:
            if name or len(files) > 1:
                check_relative_path(name)
    except UnsafePathError:
        return False
    return is_hash(digest) and len(files) <= MAX_FILES


def damaged_copies(cache: "FeatureCache", rows: list[ShardRow]) -> Iterator[tuple[ShardRow, str]]:
    """Shards of the working copy whose bytes are not those that were committed."""
    for row in rows:
        path = cache.path / "shards" / row.name
        try:
            written = hash_files(path)
            if (written.digest, written.num_bytes) != (row.digest, row.num_bytes):
                yield row, "its bytes are not those that were written"
        except FileNotFoundError:
            continue
        except OSError as error:
            yield row, f"it cannot be read: {error.strerror}"
