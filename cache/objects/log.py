"""The log in the object store: read from a position on, extended by exactly one record a position."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from cache.errors import CacheError, DamageError
from cache.objects.client import Objects
from cache.objects.records import MAX_RECORD_BYTES, Record, position_of, record_name, record_of

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
