"""How a shard gets into the cache, so that whatever dies at whatever moment, the cache holds all of it or nothing.

    stage    write shards/.tmp-… in a child process → fsync → read back and hash
             (object store: PUT each file below shards/<hash>)
    commit   ledger transaction begins → check the claim → write rows
             → rename → fsync shards/   (object store: PUT records/<next position>, only if there is none)
             → ledger transaction ends (fsync of SQLite's log)
    adopt    a complete shard without a row gets its rows, another one goes to the quarantine; leftovers are removed

Only when the transaction has ended are the videos done. The rename happens inside it, after the claim was checked.
SQLite lets one process in at a time: a worker whose claim was taken over never gets to rename, and nobody clears away a
shard that is about to be recorded. So a shard without a row belongs to a commit that died between the rename and the
end of the transaction. It carries in its notes what the ledger needs to adopt it.
"""

import dataclasses
import errno
import os
import re
import secrets
import shutil
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from cache.common.errors import CacheError, DamageError
from cache.common.files import discard, from_json, fsync_folder, raise_if_unreadable, remove
from cache.fingerprint import JSON, canonical_json
from cache.ledger import LEASE_SECONDS, SHARD_NAME, WITH_FEATURES, Claim, Outcome, ShardRow
from cache.quarantine import QUARANTINE, quarantine
from cache.shards import SUFFIXES, open_shard
from cache.shards.protocol import ShardData, ShardIndex, ShardReader
from cache.shards.writer import ShardWriter, Written, hash_files
from cache.storage import StagedShard, Storage

_TEMPORARY = re.compile(r"\.tmp-(?P<token>\d+)-\d+-\d+")
_RESERVE_BYTES = 32 << 20
"""Left free on the disk, for the ledger and other writers."""


@dataclass(frozen=True, kw_only=True)
class ShardNotes:
    """The notes of a shard: what its ledger rows say, so that it can be adopted without them."""

    fingerprint: str
    """Digest of the identity of its features."""
    environment: str
    """JSON: see `ShardRow.environment`."""
    outcomes: tuple[Outcome, ...]
    """Of its videos, in order. Decode and modification times are 0: equal work gives equal bytes."""

    @classmethod
    def of(cls, reader: ShardReader) -> "ShardNotes":
        """The notes of a shard. Raises `DamageError` if they are something else."""
        try:
            notes = from_json(msgspec.json.decode(reader.index.notes), cls)
            notes.environment_fields()
        except (ValueError, RecursionError) as error:
            raise DamageError(f"shard {reader.path}: its notes are not those of this program: {error}") from error
        return notes

    def environment_fields(self) -> dict[str, Any]:
        """The environment, by its fields' names."""
        return msgspec.json.decode(self.environment, type=dict[str, Any])


# -- stage ------------------------------------------------------------------------------------------------------------


def stage(
    storage: Storage,
    writer: ShardWriter,
    token: int,
    data: ShardData | None,
    outcomes: Sequence[Outcome],
    environment: Mapping[str, JSON],
    *,
    keep: bool,
) -> StagedShard:
    """Write a shard durably under a temporary name; touches no ledger, so any machine can do it.

    Nobody clears it away while the claim with `token` is held. `keep`: see `Storage.upload`. Raises `CacheError` if the
    disk or the store refuses.
    """
    ordered = tuple(_in_shard_order(data, outcomes))
    if data is None:
        return StagedShard(name="", outcomes=ordered)
    notes = ShardNotes(
        fingerprint=storage.description.fingerprint.digest,
        environment=canonical_json(dict(environment)),
        outcomes=tuple(_noted(outcome) for outcome in ordered if outcome.status in WITH_FEATURES),
    )
    data = dataclasses.replace(data, notes=canonical_json(dataclasses.asdict(notes)))
    shards = storage.folder / "shards"
    temporary = temporary_path(shards, token)
    try:
        written = _write(storage, writer, temporary, data)
        files = storage.upload(temporary, written.digest, keep=keep)
        row = _row(storage, written, data.index, notes.environment)
        return StagedShard(name=temporary.name, outcomes=ordered, shard=row, files=files)
    except BaseException as error:
        discard(temporary)
        if isinstance(error, OSError):
            raise _disk_error(error, shards) from error
        raise


def _noted(outcome: Outcome) -> Outcome:
    """What a shard says of a video: nothing that differs between two extractions of equal files."""
    file = outcome.file and dataclasses.replace(outcome.file, modified_ns=0)
    return dataclasses.replace(outcome, seconds=0.0, file=file)


def _row(storage: Storage, written: Written, index: ShardIndex, environment: str) -> ShardRow:
    return ShardRow(
        number=0,
        name=f"000000-{written.digest[:16]}{SUFFIXES[storage.description.backend]}",
        content=index.content,
        num_videos=index.num_videos,
        num_frames=index.num_frames,
        environment=environment,
        **vars(written),
    )


def _numbered(storage: Storage, connection: sqlite3.Connection, row: ShardRow) -> ShardRow:
    number = storage.next_number(connection)
    return dataclasses.replace(row, number=number, name=f"{number:06d}{row.name[6:]}")


def _in_shard_order(data: ShardData | None, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Outcomes with features in the order of the shard's videos, then the others. Raises `CacheError` on mismatch."""
    by_id = {outcome.video_id: outcome for outcome in outcomes}
    with_features = {outcome.video_id for outcome in outcomes if outcome.status in WITH_FEATURES}
    stored = data.video_ids if data else ()
    if len(by_id) != len(outcomes) or with_features != set(stored):
        raise CacheError(
            f"a shard of {len(stored)} videos was given with {len(with_features)} outcomes that are done or suspect; "
            "each video with features needs one such outcome, and the other way round"
        )
    for video_id, frames in zip(stored, np.diff(data.offsets).tolist() if data else (), strict=True):
        if by_id[video_id].num_frames != frames:
            raise CacheError(
                f"video {video_id!r} has features of {frames} frames, but its outcome says {by_id[video_id].num_frames}"
            )
    return [by_id[video_id] for video_id in stored] + [o for o in outcomes if o.video_id not in with_features]


def _write(storage: Storage, writer: ShardWriter, temporary: Path, data: ShardData) -> Written:
    """Write the shard. What a failed fsync leaves is unknown: the file is removed and written anew, once."""
    num_bytes = sum(features.nbytes for features in data.features.values())
    free_bytes = shutil.disk_usage(temporary.parent).free
    if free_bytes < num_bytes * 1.1 + _RESERVE_BYTES:
        raise OSError(errno.ENOSPC, f"{free_bytes >> 20} MiB are free, the next shard needs {num_bytes >> 20} MiB")
    backend = storage.description.backend
    try:
        return writer.write(temporary, backend, data)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        discard(temporary)
        return writer.write(temporary, backend, data)


def temporary_path(shards: Path, token: int) -> Path:
    """A name in `shards/` that nobody else uses, for the holder of the claim with `token`; 0 is nobody's token."""
    # Several machines may write into one folder: neither process ids nor counters tell their files apart.
    return shards / f".tmp-{token}-{os.getpid()}-{secrets.randbits(64)}"


def token_of(name: str) -> int | None:
    """Token of the claim for which `name` in `shards/` was written; None if it is not a temporary name."""
    found = _TEMPORARY.fullmatch(name)
    return None if found is None else int(found["token"])


def _disk_error(error: OSError, shards: Path) -> CacheError:
    """What the disk refused, and what to do about it."""
    what, todo = f"the disk refused to write a shard in {shards}: {error}", "check the disk, then"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        what, todo = f"no space left for shards in {shards}: {error.strerror}", "free some space and"
    return CacheError(f"{what}. All that was committed is safe: {todo} run the same command again")


# -- commit -----------------------------------------------------------------------------------------------------------


def commit_staged(storage: Storage, claim: Claim, staged: StagedShard) -> None:
    """Put a staged shard and its rows into the cache; on disk when this returns.

    Raises `LeaseLostError` if the claim was taken over and `CacheError` if the disk refuses. Then nothing is committed,
    and the staged shard is removed.
    """
    shards = storage.folder / "shards"
    temporary = shards / staged.name
    try:
        with storage.transaction() as connection:
            storage.ledger.check_claim(connection, claim)
            if staged.shard is not None:
                staged = dataclasses.replace(staged, shard=_numbered(storage, connection, staged.shard))
            storage.ledger.record(connection, claim.token, staged.outcomes, staged.shard)
            storage.commit(connection, staged)
    except OSError as error:
        raise _disk_error(error, shards) from error
    finally:
        if staged.name:
            discard(temporary)


# -- adopt ------------------------------------------------------------------------------------------------------------


def recover(storage: Storage, *, dry_run: bool = False) -> list[str]:
    """Clear up after workers that died: free their claims, adopt their shards. Returns what was done.

    What cannot be adopted goes to the quarantine if it is a shard, and is removed if it was being written. `dry_run`:
    change nothing, and return what would be done.

    Raises `CacheError` if the disk refuses.
    """
    shards, ledger, done = storage.folder / "shards", storage.ledger, []
    try:
        with ledger.transaction(keep=not dry_run) as connection:
            ledger.free_lapsed(connection, LEASE_SECONDS)
            tokens = {row[0] for row in connection.execute("SELECT token FROM claims")}
            known = {row[0] for row in connection.execute("SELECT name FROM shards")}
            for name in sorted(entry.name for entry in shards.iterdir() if entry.name not in known):
                path, token, shard = shards / name, token_of(name), SHARD_NAME.fullmatch(name)
                staged = None
                if shard and not storage.shards_are_copies:
                    staged = adopt(storage, connection, path, shard["digest"])
                if staged is not None and staged.shard is not None:
                    if not dry_run:
                        path.rename(shards / staged.shard.name)
                    done.append(f"adopted shard {name}, which was complete but not yet recorded")
                elif shard:
                    # It may be good all the same: the ledger may be an older one, or not the one it was written for.
                    moved = [f"moved {name} to {QUARANTINE}/"] if dry_run else quarantine(storage.folder, path)
                    done += [f"{line}: it has no row in the ledger, and cannot be adopted" for line in moved]
                elif token is not None and token not in tokens:
                    # A writing child may outlive its extraction for a moment; the new name keeps it from adding files.
                    if not dry_run:
                        remove(path.rename(temporary_path(shards, 0)))
                    done.append(f"removed {name}, left over from an extraction that was interrupted")
            if done and not dry_run:
                fsync_folder(shards)
    except OSError as error:
        raise _disk_error(error, shards) from error
    return done


def adopt(storage: Storage, connection: sqlite3.Connection, path: Path, digest: str) -> StagedShard | None:
    """Record the shard at `path` if it is complete, its hash begins with `digest` and its videos are still pending.

    Returns it with its row; None if it was not recorded. Raises `UnreadableError` if the system refuses to read it.
    """
    connection.execute("SAVEPOINT adoption")
    try:
        written = hash_files(path)
        reader = open_shard(path, storage.description.backend)
        index = reader.index
        notes = ShardNotes.of(reader)
        same_bytes = written.digest.startswith(digest)
        same_videos = tuple(outcome.video_id for outcome in notes.outcomes) == index.video_ids
        same_features = notes.fingerprint == storage.description.fingerprint.digest
        same_features &= reader.widths == storage.description.widths
        if not (same_bytes and same_videos and same_features):
            return None
        shard = _numbered(storage, connection, _row(storage, written, index, notes.environment))
        storage.ledger.add_gone(connection, notes.outcomes)
        storage.ledger.record(connection, None, notes.outcomes, shard)
        return StagedShard(name=path.name, outcomes=notes.outcomes, shard=shard)
    except (CacheError, OSError, ValueError, KeyError, TypeError) as error:
        connection.execute("ROLLBACK TO adoption")
        raise_if_unreadable(error, path)
        return None
    finally:
        connection.execute("RELEASE adoption")
