"""A cache in an object store, and the working copy of it on this machine.

The store has the truth: cache.json, datasets, shards, and the log of records. The working copy has what is needed to
work from it: the same cache.json, the ledger that the log leads to, and some of the shards. It may be lost at any time.

What `verify` and `repair` ask about a cache in an object store: is the log followed, what has no record.
"""

import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

import xxhash

from cache.commit import adopt, discard
from cache.common.errors import CacheError, DamageError, DatasetError, UnsafePathError
from cache.common.files import read_sealed_json, sealed_json, unsealed_json, write_bytes_durably, write_sealed_json
from cache.dataset import Dataset, check_relative_path, dataset_bytes, dataset_of, read_dataset
from cache.description import Description, description_json, description_of
from cache.ledger import Ledger, Outcome, ShardRow
from cache.remote.client import Location, Objects
from cache.remote.lease import DriverLease
from cache.remote.log import MAX_FILES, Kind, Record, RecordLog, is_hash, object_of, shard_object
from cache.remote.working_copy import LocalCopy
from cache.shards import SUFFIXES, Backend
from cache.shards.writer import hash_files

if TYPE_CHECKING:
    from cache.store import FeatureCache


FILE: Final = "remote.json"
"""In a working copy: where the store is."""

COPY_BYTES: Final = 64 << 30
"""What the shards in a working copy may take together, unless it is said otherwise."""

_MAX_DESCRIPTION_BYTES = 16 << 20
_MAX_DATASET_BYTES = 16 << 30
_WINDOW = 256
"""Records applied in one transaction."""


@dataclass(frozen=True, kw_only=True)
class Attachment:
    """The content of remote.json."""

    location: Location
    driver: str
    """Tells this working copy from others of the same cache."""
    copy_bytes: int

    @classmethod
    def new(cls, location: Location, copy_bytes: int = COPY_BYTES) -> "Attachment":
        """For a working copy that is about to be made."""
        return cls(location=location, driver=secrets.token_hex(8), copy_bytes=copy_bytes)

    def write(self, folder: Path) -> None:
        """Make `folder` a working copy."""
        write_sealed_json(folder / FILE, {"format": 1, **asdict(self), "location": str(self.location)})

    @classmethod
    def read(cls, folder: Path) -> "Attachment | None":
        """Of a working copy; None for a cache that is nowhere else."""
        if not os.path.lexists(folder / FILE):
            return None
        try:
            value = read_sealed_json(folder / FILE)
            return cls(
                location=Location.parse(value["location"]),
                driver=str(value["driver"]),
                copy_bytes=int(value["copy_bytes"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CacheError(f"{folder / FILE} does not say where the cache's store is: {error!r}") from error


class Remote:
    """The store behind one working copy."""

    def __init__(self, folder: Path, attachment: Attachment, fingerprint: str) -> None:
        """`folder`: the working copy; `fingerprint`: digest of the identity of the cache's features."""
        self._folder, self._attachment, self._fingerprint = folder, attachment, fingerprint
        self.location = attachment.location
        self.objects = Objects(attachment.location)
        self.log = RecordLog(self.objects)
        self.lease = DriverLease(self.objects, attachment.driver)
        self.copy = LocalCopy(folder / "shards", self.objects, self.log, attachment.copy_bytes)

    def catch_up(self, ledger: Ledger) -> None:
        """Bring the working copy's ledger to where the log is."""
        with ledger.reading() as connection:
            records = self.log.since(ledger.applied(connection))
        while window := list(islice(records, _WINDOW)):
            with ledger.transaction() as connection:
                for record in window:
                    # Another process of this machine may have been quicker.
                    if record.position >= ledger.applied(connection):
                        self._apply(ledger, connection, record)

    def change(self, ledger: Ledger, kind: Kind, **fields: Any) -> None:
        """Write a record that is no commit, and do what it says."""
        self.lease.hold()
        with ledger.transaction() as connection:
            record = self._record(ledger.applied(connection), kind, **fields)
            self.log.append(record)
            self._apply(ledger, connection, record)

    def replace_dataset(self, ledger: Ledger, dataset: Dataset) -> None:
        """Make `dataset` the one whose features these are."""
        self.lease.hold()
        self.change(ledger, "dataset", dataset=write_dataset_object(self.objects, dataset))

    def upload(self, shard: Path, digest: str, backend: Backend) -> dict[str, int]:
        """Put a written shard, a file or folder, into the store; its files' sizes by their names."""
        name = shard_object(digest, SUFFIXES[backend])
        paths = [shard] if shard.is_file() else sorted(path for path in shard.rglob("*") if path.is_file())
        files = {"" if path == shard else str(path.relative_to(shard)): path for path in paths}
        for file, path in files.items():
            self.objects.write(f"{name}/{file}" if file else name, path)
        return {file: path.stat().st_size for file, path in files.items()}

    def commit(
        self,
        ledger: Ledger,
        connection: Any,
        outcomes: tuple[Outcome, ...],
        shard: ShardRow | None,
        files: Mapping[str, int],
    ) -> None:
        """Write the record of a commit: with it, and not before, the videos are in the cache."""
        position = ledger.applied(connection)
        self.log.append(self._record(position, "commit", outcomes=outcomes, shard=shard, files=files))
        ledger.set_applied(connection, position + 1)

    def take(self, description: Description) -> None:
        """Become the driver that extends the cache; CacheError where there is another, or another cache."""
        self.check_same(description)
        self.lease.hold()
        self.copy.clear()

    def check_same(self, description: Description) -> None:
        """CacheError unless the store still has the cache that this is the working copy of."""
        found = find(self.objects)
        if found is None or description_json(found[0]) != description_json(description):
            raise CacheError(
                f"{self.location} does not hold the cache that {self._folder} is a working copy of: it was removed or "
                "replaced. Remove the working copy to begin anew from what the store has"
            )

    def _record(self, position: int, kind: Kind, **fields: Any) -> Record:
        return Record(
            position=position, kind=kind, driver=self._attachment.driver, fingerprint=self._fingerprint, **fields
        )

    def _apply(self, ledger: Ledger, connection: Any, record: Record) -> None:
        if record.fingerprint != self._fingerprint:
            raise DamageError(f"record {record.position} of {self.location} belongs to another cache's features")
        if record.kind == "commit":
            ledger.replay(connection, record.outcomes, record.shard)
        elif record.kind == "forget":
            for number in record.forgotten:
                ledger.forget_shard(connection, number)
        elif record.kind == "retry":
            ledger.requeue_within(connection, record.statuses)
        else:
            dataset = read_dataset_object(self.objects, record.dataset)
            ledger.add_within(connection, sorted((video.id, video.path) for video in dataset.videos))
            write_bytes_durably(ledger.path.with_name("dataset.json"), dataset_bytes(dataset))
        ledger.set_applied(connection, record.position + 1)


def write_dataset_object(objects: Objects, dataset: Dataset) -> str:
    """Put a dataset into the store; its object's name, which is of its hash."""
    content = dataset_bytes(dataset)
    name = f"datasets/{xxhash.xxh3_128_hexdigest(content)}.json"
    objects.write(name, content)
    return name


def read_dataset_object(objects: Objects, name: str) -> Dataset:
    """The inverse; DatasetError where it is not there as it was written."""
    where = f"{objects.location}/{name}"
    found = objects.read(name, _MAX_DATASET_BYTES)
    if found is None or f"datasets/{xxhash.xxh3_128_hexdigest(found[0])}.json" != name:
        raise DatasetError(f"{where} is missing or not what was written; extract the dataset again")
    return dataset_of(found[0], where)


def publish(objects: Objects, dataset: Dataset, description: Description) -> None:
    """Make an empty cache in the store, which is there when its cache.json is; CacheError where one is already."""
    name = write_dataset_object(objects, dataset)
    # The nonce tells two that make the same cache at the same time apart: one of them makes it.
    value = {**description_json(description), "dataset": name, "nonce": secrets.token_hex(16)}
    if not objects.create("cache.json", sealed_json(value)):
        raise CacheError(f"{objects.location} holds a cache already; open it, or choose another prefix")


def find(objects: Objects) -> tuple[Description, str] | None:
    """The cache in the store, and the name of the dataset it began with; None where there is none."""
    found = objects.read("cache.json", _MAX_DESCRIPTION_BYTES)
    if found is None:
        return None
    where = f"{objects.location}/cache.json"
    try:
        value = unsealed_json(found[0], where)
        return description_of(value, str(objects.location)), str(value["dataset"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CacheError(f"{where} is not a cache's description: {error!r}; it was changed or is damaged") from error


def name_of(objects: Objects) -> str:
    """Name of the dataset whose features the store has; CacheError where it has none."""
    return read_dataset_object(objects, required(objects)[1]).name


def required(objects: Objects) -> tuple[Description, str]:
    """As `find`; CacheError where there is no cache."""
    found = find(objects)
    if found is None:
        raise CacheError(f"there is no cache at {objects.location}: `make extract CACHE={objects.location}` makes one")
    return found


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
