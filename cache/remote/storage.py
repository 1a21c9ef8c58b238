"""A cache in an object store, as a `Storage`.

The store has cache.json, datasets, shards, and the log of records that decides what is in the cache. The folder on this
machine is a working copy: the same cache.json, the dataset and ledger that the log leads to, and some of the shards. It
may be lost at any time.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path, PurePosixPath
from sqlite3 import Connection
from typing import Any

from cache.commit import adopt
from cache.common.errors import CacheError, DamageError, UnsafePathError
from cache.common.files import discard, write_bytes_durably
from cache.dataset import Dataset, dataset_bytes, read_dataset
from cache.description import Description, description_json
from cache.ledger import HeldLease, ShardRow, Status
from cache.ledger.database import Ledger
from cache.quarantine import quarantine
from cache.remote.attachment import Attachment, find_cache, read_dataset_object, required, write_dataset_object
from cache.remote.client import Objects
from cache.remote.lease import DriverLease
from cache.remote.log import MAX_FILES, Kind, Record, RecordLog, check_file_names, is_hash, object_of, shard_object
from cache.remote.web import WebObjects
from cache.remote.working_copy import TRANSFER, LocalCopy
from cache.shards import SUFFIXES
from cache.storage import Finding, LocalStorage, StagedShard, Storage, bytes_problem, ids_and_paths

_WINDOW = 256
"""Records applied in one transaction."""


def open_storage(folder: Path, description: Description) -> Storage:
    """The storage of the cache in `folder`: an object store if `folder` is a working copy, else the folder itself."""
    attachment = Attachment.read(folder)
    if attachment is None:
        return LocalStorage(folder, description)
    return ObjectStorage(folder, description, attachment, attachment.objects(folder))


class ObjectStorage(Storage):
    """A cache in an object store. One machine at a time extends it. `Storage` says what the methods do."""

    shards_are_copies = True

    def __init__(self, folder: Path, description: Description, attachment: Attachment, objects: Objects) -> None:
        """`folder` is the working copy."""
        self.folder, self.description = folder, description
        self.ledger = Ledger(folder / "ledger.sqlite", description.cache_id)
        self._driver, self._fingerprint = attachment.driver, description.fingerprint.digest
        self._suffix = SUFFIXES[description.backend]
        self.objects = objects
        self.read_only = isinstance(objects, WebObjects)
        self.address = str(self.objects.location)
        self.place = f"{self.address} ({description.backend}); a working copy of it is {folder}"
        self.log = RecordLog(self.objects)
        self.lease = DriverLease(self.objects, attachment.driver)
        self.copy = LocalCopy(folder / "shards", self.objects, self.log, attachment.copy_bytes)

    def free_bytes(self) -> int | None:
        """Not limited: the working copy makes room."""
        return None

    def close(self) -> None:
        if self.lease.held:
            # Other processes on this machine share the driver's identity: the lease stays while they hold claims.
            self.lease.release(for_all=not self.ledger.leases())
        self.ledger.close()

    # -- reading ------------------------------------------------------------------------------------------------------

    def catch_up(self) -> None:
        """Apply the log's new records to the working copy."""
        self._follow_log(self.ledger)

    def _follow_log(self, ledger: Ledger) -> None:
        with ledger.reading() as connection:
            records = self.log.since(ledger.applied(connection))
        while window := list(islice(records, _WINDOW)):
            with ledger.transaction() as connection:
                for record in window:
                    # Another process of this machine may have applied it meanwhile.
                    if record.position >= ledger.applied(connection):
                        self._apply(ledger, connection, record)

    def _apply(self, ledger: Ledger, connection: Connection, record: Record) -> None:
        if record.fingerprint != self._fingerprint or record.cache_id not in (0, self.description.cache_id):
            raise CacheError(
                f"record {record.position} of {self.address} belongs to another cache: the records were put there from "
                "elsewhere. Put this cache's own records back; nothing was changed"
            )
        if record.kind == "commit":
            known = "SELECT 1 FROM videos WHERE id = ?"
            unknown = [o for o in record.outcomes if not connection.execute(known, (o.video_id,)).fetchone()]
            if unknown and (found := find_cache(self.objects)) is not None:
                # A ledger that is made anew has the videos of now; some of the beginning may have left the dataset.
                first = {video.id for video in read_dataset_object(self.objects, found[1]).videos}
                ledger.add_gone(connection, [outcome for outcome in unknown if outcome.video_id in first])
            ledger.replay(connection, record.outcomes, record.shard)
        elif record.kind == "forget":
            for number in record.forgotten:
                ledger.forget_shard(connection, number)
        elif record.kind == "retry":
            ledger.requeue(connection, record.statuses, record.videos)
        else:
            dataset = read_dataset_object(self.objects, record.dataset)
            ledger.add(connection, ids_and_paths(dataset))
            write_bytes_durably(ledger.path.with_name("dataset.json"), dataset_bytes(dataset))
        ledger.set_applied(connection, record.position + 1)

    def fetch(self, row: ShardRow) -> Path:
        """The shard in the working copy, downloaded if it is not there."""
        return self.copy.fetch(row)

    def original(self, row: ShardRow) -> AbstractContextManager[Path]:
        """The shard, downloaded anew."""
        return self.copy.fresh(row)

    # -- writing ------------------------------------------------------------------------------------------------------

    def acquire(self) -> None:
        """Take the driver's lease. A published cache has none: only the copies here can be mended."""
        if self.read_only:
            self.copy.clear()
            return
        found = find_cache(self.objects)
        if found is None or description_json(found[0]) != description_json(self.description):
            raise CacheError(
                f"{self.address} does not hold the cache that {self.folder} is a working copy of: it was removed or "
                "replaced. Remove the working copy to start again from what the store has"
            )
        self.lease.hold()
        self.copy.clear()

    def transaction(self) -> AbstractContextManager[Connection]:
        self._hold()
        return self.ledger.transaction()

    def _hold(self) -> None:
        if self.read_only:
            raise CacheError(f"{self.address} is a published cache, which is read only; nothing was changed")
        self.lease.hold()

    def upload(self, staged: Path, digest: str, *, keep: bool) -> Mapping[str, int]:
        """Put the shard's files below shards/<hash>. Returns their sizes by their names."""
        name = shard_object(digest, self._suffix)
        sizes = {}
        for path in [staged] if staged.is_file() else sorted(path for path in staged.rglob("*") if path.is_file()):
            file = "" if path == staged else str(path.relative_to(staged))
            self.objects.write(f"{name}/{file}" if file else name, path)
            sizes[file] = path.stat().st_size
        if not keep:
            discard(staged)
        return sizes

    def next_number(self, connection: Connection) -> int:
        """The position of the next record."""
        return self.ledger.applied(connection)

    def commit(self, connection: Connection, staged: StagedShard) -> None:
        """Write the record: with it, and not before, the videos are in the cache."""
        position, shard = self.ledger.applied(connection), staged.shard
        self.log.append(self._record(position, "commit", outcomes=staged.outcomes, shard=shard, files=staged.files))
        self.ledger.set_applied(connection, position + 1)
        if shard is not None:
            self.copy.keep(staged.name, shard)

    def requeue(self, statuses: Sequence[Status] = (), videos: Sequence[str] = ()) -> int:
        pending = self.ledger.counts()["pending"]
        self._change("retry", statuses=tuple(statuses), videos=tuple(videos))
        return self.ledger.counts()["pending"] - pending

    def replace_dataset(self, dataset: Dataset) -> None:
        self._hold()
        self._change("dataset", dataset=write_dataset_object(self.objects, dataset))

    def _change(self, kind: Kind, **fields: Any) -> None:
        """Write a record that is not a commit, and apply it."""
        with self.transaction() as connection:
            record = self._record(self.ledger.applied(connection), kind, **fields)
            self.log.append(record)
            self._apply(self.ledger, connection, record)

    def _record(self, position: int, kind: Kind, **fields: Any) -> Record:
        fields |= {"fingerprint": self._fingerprint, "cache_id": self.description.cache_id}
        return Record(position=position, kind=kind, driver=self._driver, **fields)

    # -- leases -------------------------------------------------------------------------------------------------------

    def leases(self) -> list[HeldLease]:
        """Also the driver's; claims are those of this working copy."""
        driver = self.lease.held_by()
        return [*super().leases(), *([driver] if driver else [])]

    def end_lease(self, lease: HeldLease) -> None:
        if lease.token:
            super().end_lease(lease)
        else:
            self.lease.end(lease)

    # -- verify and repair --------------------------------------------------------------------------------------------

    def ledger_problems(self) -> Iterator[str]:
        """Replays the whole log beside the working copy and compares."""
        self.catch_up()
        with tempfile.TemporaryDirectory(prefix="mrrn-log-") as folder:
            _, dataset = required(self.objects)
            ledger = Ledger.create(Path(folder) / "ledger.sqlite", ids_and_paths(dataset))
            self._follow_log(ledger)
            if (Path(folder) / "dataset.json").exists():
                dataset = read_dataset(Path(folder) / "dataset.json")
            if dataset != read_dataset(self.folder / "dataset.json"):
                yield "dataset.json of the working copy is not the one in the store"
            for what in ("outcomes", "places", "shards"):
                logged, ours = (list(getattr(one, what)()) for one in (ledger, self.ledger))
                if logged != ours:
                    yield f"the working copy's ledger has other {what} than the records in the store"
            ledger.close()

    def check(self) -> Iterator[Finding]:
        """Damaged copies of shards, and orphans."""
        for row in self.ledger.shards():
            problem = None
            with suppress(FileNotFoundError):
                problem = bytes_problem(self.folder / "shards" / row.name, row)
            if problem:
                yield Finding(what=f"the copy of shard {row.name} here: {problem}", shard=row, copy_only=True)
        for name in self._orphans():
            what = "no record refers to it; `mrrn cache repair` adopts it if it is whole, with --prune deletes it"
            yield Finding(what=f"{self.address}/{name}: {what}", harmless=True)

    def is_transfer(self, name: str) -> bool:
        return TRANSFER.fullmatch(name) is not None

    def _orphans(self) -> dict[str, dict[str, int]]:
        """What is below shards/ without a record: of a commit that died, or of a shard that was forgotten.

        The size of each object, by its path below the shard's name; if that is the object itself, its path is empty.
        """
        known = {object_of(row) for row in self.ledger.shards()}
        found: dict[str, dict[str, int]] = {}
        for path, num_bytes in self.objects.names("shards"):
            parts = PurePosixPath(path).parts
            name = "/".join(parts[:2])
            if name not in known:
                found.setdefault(name, {})["/".join(parts[2:])] = num_bytes
        return found

    def settle(self, *, prune: bool, dry_run: bool) -> list[str]:
        """Adopt the orphans that are complete and whose videos are still pending."""
        orphans = self._orphans()
        if orphans and self.ledger.leases():
            return [f"left {len(orphans)} shards without a record alone: an extraction is at work"]
        done = []
        for name, files in orphans.items():
            if dry_run:
                todo = "deleted it if not" if prune else "left it alone if not"
                done.append(f"adopted {name}, if it is complete and its videos are still pending; {todo}")
            elif self._adopted(name, files):
                done.append(f"adopted {name}, which was complete but not yet recorded")
            elif prune:
                self.objects.delete([f"{name}/{file}" if file else name for file in files])
                done.append(f"deleted {name}, which no record refers to")
        return done

    def _adopted(self, name: str, files: Mapping[str, int]) -> bool:
        digest = name.removeprefix("shards/").removesuffix(self._suffix)
        if shard_object(digest, self._suffix) != name or not is_hash(digest) or len(files) > MAX_FILES:
            return False
        path = self.copy.new_name()
        try:
            check_file_names(files)
            self.copy.download(name, files, path)
            with self.ledger.transaction() as connection:
                # `adopt` returns None for whatever is wrong with the orphan. Later errors are not the orphan's.
                staged = adopt(self, connection, path, digest)
                if staged is None:
                    return False
                self.commit(connection, replace(staged, files=files))
            return True
        except UnsafePathError:
            return False
        finally:
            discard(path)

    def mend(self, finding: Finding) -> list[str]:
        """Copies are fetched again; a damaged shard in the store is replaced by a good copy, or the log forgets it."""
        row = finding.shard
        if row is None:
            return []
        copy = self.folder / "shards" / row.name
        if finding.copy_only:
            discard(copy)
            return [f"removed the damaged copy of {row.name}; it is fetched again when it is read"]
        if os.path.lexists(copy) and bytes_problem(copy, row) is None:
            self.upload(copy, row.digest, keep=True)
            return [f"wrote {row.name} to the store again, from the copy here"]
        if self.read_only:
            raise DamageError(f"{finding.what}. Only whoever publishes {self.address} can mend that")
        self._change("forget", forgotten=(row.number,))
        return [*quarantine(self.folder, copy), f"queued the {len(finding.videos)} videos of {row.name} again"]
