"""The log of a cache in an object store: numbered, immutable records that together are its ledger.

What a record says is checked when it is made, also when it is made of bytes that came from elsewhere.

The log in the object store: read from a position on, extended by exactly one record a position.
"""

import re
import secrets
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final, Literal, get_args

from cache.common.errors import CacheError, DamageError, MrrnError
from cache.common.files import sealed_json, unsealed_json
from cache.dataset import check_relative_path
from cache.ledger import STATUSES, WITH_FEATURES, Outcome, ShardRow, Status
from cache.remote.client import Objects

Kind = Literal["commit", "forget", "retry", "dataset"]

MAX_RECORD_BYTES: Final = 256 << 20
"""Far above what any record takes; a larger one was made up."""

MAX_FILES: Final = 4096
"""A shard has some two files for each array and one for each view."""

_NAME = re.compile(r"records/(?P<position>\d{8,10})\.json")
_HEX32 = re.compile(r"[0-9a-f]{32}")
_DATASET = re.compile(r"datasets/[0-9a-f]{32}\.json")
_TEXT_FIELDS = ("video_id", "reason")
_COUNT_FIELDS = ("num_frames", "decoder_errors")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One change of the cache; checked when made (DamageError)."""

    position: int
    """Its place in the log, from 0; there is one record for each."""
    kind: Kind
    driver: str
    """The working copy that wrote it."""
    fingerprint: str
    """Digest of the identity of the cache's features."""
    outcomes: tuple[Outcome, ...] = ()
    """commit: what became of some videos, those with features first, in the shard's order."""
    shard: ShardRow | None = None
    """commit: the shard with their features; its number is the record's position."""
    files: Mapping[str, int] = field(default_factory=dict)
    """commit: size of each of the shard's files by its path below the shard; of one file under the empty path."""
    forgotten: tuple[int, ...] = ()
    """forget: numbers of shards that are damaged; their videos are pending again."""
    statuses: tuple[Status, ...] = ()
    """retry: all videos of these statuses are pending again."""
    dataset: str = ""
    """dataset: name of the object that is the dataset from now on."""
    written: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    nonce: str = field(default_factory=lambda: secrets.token_hex(16))
    """Makes two attempts at one position different, so that each knows whether it is the one that is there."""

    def __post_init__(self) -> None:
        where = f"record {self.position}"
        for outcome in self.outcomes:
            _check_outcome(outcome, where)
        ids = [outcome.video_id for outcome in self.outcomes]
        held = sum(outcome.status in WITH_FEATURES for outcome in self.outcomes)
        _expect(len(set(ids)) == len(ids), f"{where} names a video twice")
        _expect(held == (self.shard.num_videos if self.shard else 0), f"{where}: {held} videos have features in it")
        _expect(all(_is_count(number) for number in self.forgotten), f"{where} forgets {self.forgotten!r}")
        _expect(all(status in STATUSES for status in self.statuses), f"{where} retries {self.statuses!r}")
        _expect(self.kind != "dataset" or _DATASET.fullmatch(self.dataset) is not None, f"{where}: {self.dataset!r}")
        if self.shard is not None:
            self._check_files(self.shard, where)

    def _check_files(self, shard: ShardRow, where: str) -> None:
        _expect(shard.number == self.position, f"{where} speaks of shard {shard.number}")
        _expect(is_hash(shard.digest), f"{where}: the shard's hash is {shard.digest!r}")
        _expect(shard.name.split("-")[1].startswith(shard.digest[:16]), f"{where}: {shard.name} is not of its own hash")
        _expect(0 < len(self.files) <= MAX_FILES, f"{where}: a shard of {len(self.files)} files")
        for name, num_bytes in self.files.items():
            _expect(_is_count(num_bytes), f"{where}: file {name!r} has {num_bytes!r} bytes")
            if name or len(self.files) > 1:
                check_relative_path(name)
        _expect(
            sum(self.files.values()) == shard.num_bytes, f"{where}: the sizes of {shard.name}'s files do not add up"
        )

    def to_bytes(self) -> bytes:
        """As sealed JSON."""
        shard = self.shard and asdict(self.shard)
        return sealed_json({"format": 1, **asdict(self), "shard": shard, "files": dict(self.files)})


def is_hash(text: str) -> bool:
    """Whether it is xxh3_128 in hex."""
    return _HEX32.fullmatch(text) is not None


def record_name(position: int) -> str:
    """The object that holds the record."""
    return f"records/{position:08d}.json"


def position_of(name: str) -> int | None:
    """The position of the record with this name; None where it is no record's."""
    match = _NAME.fullmatch(name)
    position = int(match["position"]) if match else -1
    return position if record_name(position) == name else None


def shard_object(digest: str, suffix: str) -> str:
    """The name, or the beginning of the names, of a shard's objects: its hash, so equal shards have equal names."""
    return f"shards/{digest}{suffix}"


def object_of(shard: ShardRow) -> str:
    """The same for a shard that was committed."""
    return shard_object(shard.digest, f".{shard.name.rpartition('.')[2]}")


def record_of(content: bytes, position: int, where: str) -> Record:
    """The inverse of `to_bytes`; DamageError, beginning with `where`, where `content` is no record of this position."""
    try:
        value = unsealed_json(content, where)
        if value.pop("format") != 1:
            raise DamageError("it has another format than 1; a newer version of this program wrote it")
        if value["position"] != position or value["kind"] not in get_args(Kind):
            raise DamageError(f"it calls itself {value['kind']!r} record {value['position']!r}")
        value["outcomes"] = tuple(Outcome(**row) for row in value["outcomes"])
        value["shard"] = None if value["shard"] is None else ShardRow(**value["shard"])
        value |= {name: tuple(value[name]) for name in ("forgotten", "statuses")}
        _expect(isinstance(value["files"], dict), "its files have no names")
        _expect(all(isinstance(value[name], str) for name in ("driver", "fingerprint", "written", "nonce")), "no texts")
        return Record(**value)
    except (MrrnError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamageError(f"{where} is not a record that was written here: {error}") from error


def _check_outcome(outcome: Outcome, where: str) -> None:
    check_relative_path(outcome.video_id)
    for name in _TEXT_FIELDS:
        _expect(isinstance(getattr(outcome, name), str), f"{where}: {name} of {outcome.video_id!r} is no text")
    for name in _COUNT_FIELDS:
        _expect(_is_count(getattr(outcome, name)), f"{where}: {name} of {outcome.video_id!r} is no count")
    declared: Any = outcome.declared_frames
    _expect(declared is None or _is_count(declared), f"{where}: declared_frames of {outcome.video_id!r} is no count")
    _expect(isinstance(outcome.seconds, int | float), f"{where}: seconds of {outcome.video_id!r} are no number")
    _expect(outcome.status != "pending", f"{where}: {outcome.video_id!r} is pending")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise DamageError(what)


_READERS = 16
"""Records fetched at a time; each is small, and far away."""


class RecordLog:
    """All records of a cache."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def read(self, position: int) -> Record:
        """One record; DamageError where it is missing or not as it was written."""
        name = record_name(position)
        found = self._objects.read(name, MAX_RECORD_BYTES)
        if found is None:
            raise DamageError(f"{self._objects.location}/{name} is missing: it was removed after it was written")
        return record_of(found[0], position, f"{self._objects.location}/{name}")

    def since(self, position: int) -> Iterator[Record]:
        """Records from `position` on, in order; DamageError where one before the last is missing.

        Where `position` is not 0, the record before it has to be there still: otherwise this is another cache's log.
        """
        wanted = self._positions(max(position - 1, 0))
        if position and next(wanted, None) != position - 1:
            raise DamageError(
                f"{self._objects.location} has no record {position - 1}, which the working copy knows: the store's "
                "content was removed or replaced. Remove the working copy to begin anew from what the store has"
            )
        with ThreadPoolExecutor(_READERS, thread_name_prefix="records") as threads:
            while window := list(islice(wanted, 4 * _READERS)):
                yield from threads.map(self.read, window)

    def _positions(self, first: int) -> Iterator[int]:
        """Positions from `first` on that have a record, by a listing; they follow one another."""
        after = record_name(first - 1) if first else ""
        found = (position_of(entry.name) for entry in self._objects.names("records", after))
        for expected, position in enumerate((p for p in found if p is not None), first):
            if position != expected:
                raise DamageError(
                    f"{self._objects.location}/{record_name(expected)} is missing, and later ones are there: "
                    "it was removed after it was written"
                )
            yield position

    def append(self, record: Record) -> None:
        """Write the record, if its position is free; CacheError where another driver was there before."""
        if not self._objects.create(record_name(record.position), record.to_bytes()):
            theirs = self.read(record.position)
            raise CacheError(
                f"{self._objects.location}: another driver ({theirs.driver}) wrote record {record.position} at "
                f"{theirs.written}, so this one ({record.driver}) has lost the cache and stops; nothing is committed "
                "twice. Let one driver work on a cache at a time; the same command goes on from what is there"
            )
