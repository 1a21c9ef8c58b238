"""What a cache is kept in: a folder of this machine (here), or an object store (`cache/remote/storage.py`).

Everything above works with a `Storage` and never asks which one it has. Both have a folder on this machine with
cache.json, dataset.json, the ledger and shards/: the cache itself, or a working copy that may be lost at any time.
"""

import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from sqlite3 import Connection
from typing import Any, Protocol

from cache.common.errors import CacheError
from cache.common.files import (
    discard,
    fsync_folder,
    make_folder_durably,
    raise_if_unreadable,
    write_bytes_durably,
    write_sealed_json,
)
from cache.dataset import Dataset, read_dataset, update_format, write_dataset
from cache.description import Description, description_json
from cache.fingerprint import JSON
from cache.ledger import HeldLease, Outcome, ShardRow, Status
from cache.ledger.database import Ledger, free
from cache.processes import is_dead, this_process
from cache.quarantine import quarantine
from cache.shards.writer import hash_files

_README = """\
This folder is a feature cache of MRRN: what a frozen image network says of every frame of the videos of one dataset.
Heads are trained from it without the videos. It took hours to make; keep it, or make it again with `make extract`.
If there is a remote.json, this is a working copy of a cache in an object store, and may be deleted.

  cache.json      what the features are: format, levels, views, settings, fingerprint
  dataset.json    the videos, their classes and splits
  ledger.sqlite   what became of each video: done, suspect, failed and why (its -wal, where there is one, belongs to it)
  shards/         the features: write-once files, HDF5 or Zarr v3
  quarantine/     if it is there: damaged and unknown files; nothing reads them, and they may be deleted

Each shard holds several videos: video_id [N], offsets [N + 1] (video i has frames offsets[i] to offsets[i + 1]),
pts_seconds [F], low, mid, high [views, F, channels] float16, checksum [N, levels, views] (xxh3_64).

  mrrn cache info FOLDER      what is in it
  mrrn cache verify FOLDER    whether every byte is as it was written

Do not add, rename or change files here. If the ledger does not list a shard, the next extraction adopts it if it is
complete and its videos are still to be extracted, and moves it to quarantine/ if not (always, in a working copy: the
store has every shard that counts). What a killed extraction had half written (.tmp-...) is removed.
"""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing in a cache that is not as it was written."""

    what: str
    videos: tuple[str, ...] = ()
    """Ids of the videos whose features or rows cannot be trusted."""
    shard: ShardRow | None = None
    """The damaged shard; None if the finding is not about one."""
    harmless: bool = False
    """A leftover that no reader looks at."""
    copy_only: bool = False
    """Only this working copy is damaged; the object store has everything as it was written."""


@dataclass(frozen=True, kw_only=True)
class StagedShard:
    """A written shard that is not yet in the cache, and what became of its videos. Small: it can be sent around."""

    name: str
    """Of the temporary file or folder in `shards/`; empty if no video has features."""
    outcomes: tuple[Outcome, ...]
    """Those with features first, in the shard's order."""
    shard: ShardRow | None = None
    """The row it gets; number 0 until it is committed. None if no video has features."""
    files: Mapping[str, int] = field(default_factory=dict)
    """Sizes of the shard's files in the object store, see `Record.files`; empty if the cache is a folder."""


class Storage(Protocol):
    """One open cache: its description, its ledger, its shards. Safe to use from several threads.

    Subclasses may inherit the bodies below: they fit a cache that nobody but processes of this machine can change.
    """

    folder: Path
    """The folder on this machine."""
    description: Description
    """The content of cache.json."""
    ledger: Ledger
    """What became of each video, as of the last `catch_up`."""
    address: str | None = None
    """`s3://bucket/prefix` or `https://host/path` of the store with the cache; None if `folder` is the cache itself."""
    place: str
    """Where the cache is kept and in which format, as text for the user."""
    read_only: bool = False
    """Whether others publish the cache, and nothing can be added to it here."""
    shards_are_copies: bool = False
    """Whether a shard in `folder` without a row in the ledger is a stale copy. Otherwise it may be adopted."""

    def free_bytes(self) -> int | None:
        """Free space for more shards where the cache is kept; None if it is not limited or not known."""

    def close(self) -> None:
        """Close the ledger and give up the right to extend the cache."""
        self.ledger.close()

    # -- reading ------------------------------------------------------------------------------------------------------

    def catch_up(self) -> None:
        """Bring the ledger up to date with what other machines have committed."""
        return

    def fetch(self, row: ShardRow) -> Path:
        """Path of a shard on this machine. Another process may remove it again before it is open."""

    def original(self, row: ShardRow) -> AbstractContextManager[Path]:
        """A shard as it is where the cache is kept, not an earlier copy; the path is valid inside the context."""

    # -- writing ------------------------------------------------------------------------------------------------------

    def acquire(self) -> None:
        """Become the one that extends the cache, and clear up after this machine's dead processes.

        Raises `CacheError` if another machine extends it, or if the cache was replaced by another one.
        """
        return

    def transaction(self) -> AbstractContextManager[Connection]:
        """A ledger transaction of the one that extends the cache. Raises `CacheError` if that is another machine."""
        return self.ledger.transaction()

    def upload(self, staged: Path, digest: str, *, keep: bool) -> Mapping[str, int]:
        """Take a staged shard to where the cache is kept, invisible to readers. Returns `StagedShard.files`.

        `keep`: leave the staged file on this machine too, for a commit by this machine.
        """
        return {}

    def next_number(self, connection: Connection) -> int:
        """Number of the next shard."""

    def commit(self, connection: Connection, staged: StagedShard) -> None:
        """Make a numbered shard and its outcomes visible to readers: the last step before the transaction ends."""

    def requeue(self, statuses: Sequence[Status] = (), videos: Sequence[str] = ()) -> int:
        """Make all videos of these statuses, and `videos`, pending again. Returns how many there were."""

    def accept(self, videos: Sequence[str]) -> int:
        """Make suspect `videos` done. Returns how many: none in an object store, whose records stay as they are."""
        return 0

    def remember(self, settings: Mapping[str, JSON]) -> None:
        """Make `settings` those that later commands continue with. The cache.json in an object store never changes."""
        return

    def replace_dataset(self, dataset: Dataset) -> None:
        """Make `dataset` the one whose features these are; its new videos are pending."""

    # -- leases -------------------------------------------------------------------------------------------------------

    def leases(self) -> list[HeldLease]:
        """Who holds what."""
        return self.ledger.leases()

    def end_lease(self, lease: HeldLease) -> None:
        """Take a lease away: its owner's commits are refused from now on."""
        with self.ledger.transaction() as connection:
            free(connection, [lease.token])

    # -- verify and repair --------------------------------------------------------------------------------------------

    def ledger_problems(self) -> Iterable[str]:
        """Where the ledger and dataset in `folder` differ from those that the cache's log leads to."""
        return ()

    def check(self) -> Iterable[Finding]:
        """Findings about other things than the ledger's shards: copies, objects that nothing refers to."""
        return ()

    def is_transfer(self, name: str) -> bool:
        """Whether a name in shards/ belongs to a shard that is being fetched or removed, or was when a process died."""
        return False

    def settle(self, *, prune: bool, dry_run: bool) -> list[str]:
        """Adopt shards outside of `folder` that nothing refers to; `prune`: delete those that cannot be adopted.

        Returns what was done, or would be.
        """
        return []

    def mend(self, finding: Finding) -> list[str]:
        """Remove what a finding is about and queue its videos again. Returns what was done."""


class LocalStorage(Storage):
    """A cache that is a folder of this machine. Any number of extractors share it, and its ledger is the only one.

    Methods without a docstring are described in `Storage`.
    """

    def __init__(self, folder: Path, description: Description) -> None:
        self.folder, self.description = folder, description
        self.place = f"{folder} ({description.backend})"
        self.ledger = Ledger(folder / "ledger.sqlite", description.cache_id)

    def acquire(self) -> None:
        """Give a cache of an earlier version its id, and its dataset.json the format of now."""
        update_format(self.folder / "dataset.json")
        if not self.description.cache_id:
            # The ledger first: until cache.json has an id, it takes the ledger's.
            self._describe(cache_id=self.ledger.identify())

    def remember(self, settings: Mapping[str, JSON]) -> None:
        self._describe(settings=settings)

    def _describe(self, **changed: Any) -> None:
        """Write cache.json anew."""
        self.description = replace(self.description, **changed)
        write_sealed_json(self.folder / "cache.json", description_json(self.description))

    def free_bytes(self) -> int | None:
        return shutil.disk_usage(self.folder).free

    def fetch(self, row: ShardRow) -> Path:
        return self.folder / "shards" / row.name

    def original(self, row: ShardRow) -> AbstractContextManager[Path]:
        return nullcontext(self.fetch(row))

    def next_number(self, connection: Connection) -> int:
        return connection.execute("SELECT coalesce(max(number) + 1, 0) FROM shards").fetchone()[0]

    def commit(self, connection: Connection, staged: StagedShard) -> None:
        """Give the shard its final name, durably."""
        if staged.shard is None:
            return
        final = self.fetch(staged.shard)
        final.with_name(staged.name).rename(final)
        try:
            fsync_folder(final.parent)
        except OSError:
            # Whether the name is on disk is unknown. Nothing refers to it yet, so it must not be found later.
            discard(final)
            raise

    def requeue(self, statuses: Sequence[Status] = (), videos: Sequence[str] = ()) -> int:
        with self.ledger.transaction() as connection:
            return self.ledger.requeue(connection, statuses, videos)

    def accept(self, videos: Sequence[str]) -> int:
        with self.ledger.transaction() as connection:
            return self.ledger.accept(connection, videos)

    def replace_dataset(self, dataset: Dataset) -> None:
        with self.ledger.transaction() as connection:
            self.ledger.add(connection, ids_and_paths(dataset))
        write_dataset(self.folder / "dataset.json", dataset)

    def mend(self, finding: Finding) -> list[str]:
        """Damaged shards go to the quarantine."""
        with self.ledger.transaction() as connection:
            if finding.shard is not None:
                queued = self.ledger.forget_shard(connection, finding.shard.number)
                moved = quarantine(self.folder, self.fetch(finding.shard))
                return [*moved, f"queued the {queued} videos of {finding.shard.name} again"]
            for video_id in finding.videos:
                self.ledger.forget_video(connection, video_id)
            # Videos of dataset.json that have no row get one.
            self.ledger.add(connection, ids_and_paths(read_dataset(self.folder / "dataset.json")))
        if not finding.videos:
            return []
        return [f"queued {len(finding.videos)} videos again ({finding.what})"]


def create_folder(
    path: Path, dataset: Dataset, description: Description, complete: Callable[[Path], None] = lambda _: None
) -> None:
    """Make an empty cache at `path`, which must not exist; it appears there complete or not at all.

    `complete` adds to the folder before it gets its name.
    """
    if path.exists():
        raise CacheError(f"{path} is there already; open it, or choose another folder (WORK= or --work)")
    make_folder_durably(path.parent)
    temporary = path.parent / f".tmp-{this_process()}-{path.name}"
    for entry in path.parent.iterdir():
        # Left over from a process that was killed while it made the same cache.
        if (left := re.fullmatch(rf"\.tmp-(.+)-{re.escape(path.name)}", entry.name)) and is_dead(left[1]):
            discard(entry)
    try:
        (temporary / "shards").mkdir(parents=True)
        Ledger.create(temporary / "ledger.sqlite", ids_and_paths(dataset), description.cache_id).close()
        # Each of these writes also makes durable what was made in the folder before it.
        write_sealed_json(temporary / "cache.json", description_json(description))
        write_dataset(temporary / "dataset.json", dataset)
        complete(temporary)
        write_bytes_durably(temporary / "README.txt", _README.encode())
        temporary.rename(path)
        fsync_folder(path.parent)
    except OSError as error:
        raise CacheError(f"the cache {path} cannot be made: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def ids_and_paths(dataset: Dataset) -> list[tuple[str, str]]:
    """What `Ledger.add` takes, in id order."""
    return sorted((video.id, video.path) for video in dataset.videos)


def bytes_problem(path: Path, row: ShardRow) -> str | None:
    """How the bytes of the shard at `path` differ from those that were committed; None if they do not.

    Raises `FileNotFoundError` if there is no shard and `UnreadableError` if the system refuses.
    """
    try:
        written = hash_files(path)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise_if_unreadable(error, path)
        return f"it cannot be read: {error.strerror}"
    if (written.digest, written.num_bytes) == (row.digest, row.num_bytes):
        return None
    return f"its bytes are not those that were written ({written.num_bytes} bytes, {row.num_bytes} were written)"
