"""The log of a cache in an object store: numbered, immutable records that together are its ledger.

`Record` is one of them, `RecordLog` reads them from a position on and appends exactly one for each position.
"""

import re
import secrets
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated, Final, Literal

import msgspec

from cache.common.errors import CacheError, DamageError, MrrnError
from cache.common.files import ADDED_LATER, from_json, sealed_json, unsealed_json
from cache.dataset import check_relative_path
from cache.ledger import WITH_FEATURES, Count, Outcome, ShardRow, Status
from cache.remote.client import Objects

Kind = Literal["commit", "forget", "retry", "dataset"]

MAX_RECORD_BYTES: Final = 256 << 20
"""Far above what any record takes; a larger one was made up."""

MAX_FILES: Final = 4096
"""A shard has some two files for each array and one for each view."""

_READERS = 16
"""Records fetched at a time; each is small, and the store is far away."""

_NAME = re.compile(r"records/(\d{8,10})\.json")
_HEX32 = re.compile(r"[0-9a-f]{32}")

DatasetObject = Annotated[str, msgspec.Meta(pattern=rf"\A(datasets/{_HEX32.pattern}\.json)?\Z")]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One change of the cache. Raises `DamageError` when made from values that do not fit together."""

    position: Count
    """Its place in the log, from 0; there is one record for each."""
    kind: Kind
    driver: str
    """The working copy that wrote it."""
    fingerprint: str
    """Digest of the identity of the cache's features."""
    cache_id: Count = 0
    """Of the cache; 0 in records of an earlier version."""
    outcomes: tuple[Outcome, ...] = ()
    """commit: what became of some videos, those with features first, in the shard's order."""
    shard: ShardRow | None = None
    """commit: the shard with their features; its number is the record's position."""
    files: Mapping[str, Count] = field(default_factory=dict)
    """commit: size of each of the shard's files by its path below the shard; a single file has an empty path."""
    forgotten: tuple[Count, ...] = ()
    """forget: numbers of damaged shards; their videos are pending again."""
    statuses: tuple[Status, ...] = ()
    """retry: all videos of these statuses are pending again."""
    videos: tuple[str, ...] = field(default=(), metadata=ADDED_LATER)
    """retry: so are these videos."""
    dataset: DatasetObject = ""
    """dataset: name of the object that is the dataset from now on."""
    written: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    nonce: str = field(default_factory=lambda: secrets.token_hex(16))
    """Tells apart two attempts at one position, so that each knows whether its own record is there."""

    def __post_init__(self) -> None:
        where = f"record {self.position}"
        for outcome in self.outcomes:
            check_relative_path(outcome.video_id)
            _expect(outcome.status != "pending", f"{where}: {outcome.video_id!r} is pending")
        ids = [outcome.video_id for outcome in self.outcomes]
        with_features = sum(outcome.status in WITH_FEATURES for outcome in self.outcomes)
        num_videos = self.shard.num_videos if self.shard else 0
        _expect(len(set(ids)) == len(ids), f"{where} has a video twice")
        _expect(
            with_features == num_videos, f"{where}: {with_features} videos with features, {num_videos} in its shard"
        )
        _expect(self.kind != "dataset" or bool(self.dataset), f"{where} has no dataset")
        if (shard := self.shard) is None:
            return
        _expect(shard.number == self.position, f"{where} has shard number {shard.number}")
        _expect(is_hash(shard.digest), f"{where}: the shard's hash is {shard.digest!r}")
        _expect(f"-{shard.digest[:16]}." in shard.name, f"{where}: {shard.name} does not contain its own hash")
        _expect(0 < len(self.files) <= MAX_FILES, f"{where}: a shard of {len(self.files)} files")
        check_file_names(self.files)
        total = sum(self.files.values())
        _expect(
            total == shard.num_bytes, f"{where}: the files of {shard.name} have {total}, not {shard.num_bytes} bytes"
        )


def check_file_names(files: Collection[str]) -> None:
    """Raises `UnsafePathError` unless these are paths below a shard; a single file has an empty one."""
    for name in files:
        if name or len(files) > 1:
            check_relative_path(name)


def is_hash(text: str) -> bool:
    """Whether `text` is an xxh3_128 in hex."""
    return _HEX32.fullmatch(text) is not None


def record_name(position: int) -> str:
    """Name of the object that holds the record."""
    return f"records/{position:08d}.json"


def position_of(name: str) -> int | None:
    """Position of the record with this name; None if it is not a record's."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match and record_name(int(match[1])) == name else None


def shard_object(digest: str, suffix: str) -> str:
    """Name, or first part of the names, of a shard's objects. It has the shard's hash: equal shards, equal names."""
    return f"shards/{digest}{suffix}"


def object_of(shard: ShardRow) -> str:
    """The same for a committed shard."""
    return shard_object(shard.digest, f".{shard.name.rpartition('.')[2]}")


def record_of(content: bytes, position: int, where: str) -> Record:
    """Parses what `RecordLog.append` wrote. Raises `DamageError` naming `where` if it is not this position's record."""
    try:
        value = unsealed_json(content, where)
        if value.pop("format") != 1:
            raise DamageError("it has another format than 1; a newer version of this program wrote it")
        record = from_json({"cache_id": 0} | value, Record)
    except (MrrnError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamageError(f"{where} is not a record that was written here: {error}") from error
    if record.position != position:
        raise DamageError(f"{where} calls itself record {record.position}")
    return record


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise DamageError(what)


class RecordLog:
    """All records of a cache."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def read(self, position: int) -> Record:
        """Returns one record. Raises `DamageError` if it is missing or was changed."""
        name = record_name(position)
        found = self._objects.read(name, MAX_RECORD_BYTES)
        if found is None:
            raise DamageError(f"{self._objects.location}/{name} is missing: it was removed after it was written")
        return record_of(found[0], position, f"{self._objects.location}/{name}")

    def since(self, position: int) -> Iterator[Record]:
        """Yields the records from `position` on. Raises `DamageError` if one before the last is missing.

        Unless `position` is 0, the record before it must still be there: otherwise this is another cache's log.
        """
        wanted = self._positions(max(position - 1, 0))
        if position and next(wanted, None) != position - 1:
            raise DamageError(
                f"{self._objects.location} has no record {position - 1}, which the working copy knows: the store's "
                "content was removed or replaced. Remove the working copy to start again from what the store has"
            )
        with ThreadPoolExecutor(_READERS, thread_name_prefix="records") as threads:
            while window := list(islice(wanted, 4 * _READERS)):
                yield from threads.map(self.read, window)

    def _positions(self, first: int) -> Iterator[int]:
        """Yields the positions from `first` on that have a record, by a listing; there are no gaps."""
        after = record_name(first - 1) if first else ""
        found = (position_of(name) for name, _ in self._objects.names("records", after))
        for expected, position in enumerate((p for p in found if p is not None), first):
            if position != expected:
                raise DamageError(
                    f"{self._objects.location}/{record_name(expected)} is missing, and later ones are there: "
                    "it was removed after it was written"
                )
            yield position

    def append(self, record: Record) -> None:
        """Write the record if its position is free. Raises `CacheError` if another driver has written one there."""
        if not self._objects.create(record_name(record.position), sealed_json({"format": 1, **asdict(record)})):
            theirs = self.read(record.position)
            raise CacheError(
                f"{self._objects.location}: another driver ({theirs.driver}) wrote record {record.position} at "
                f"{theirs.written}, so this one ({record.driver}) has lost the cache and stops; nothing is committed "
                "twice. Let one driver work on a cache at a time; the same command goes on from what is there"
            )
