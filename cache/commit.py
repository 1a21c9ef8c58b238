"""A shard written beside the others, under a temporary name, on its way into the cache.

write shards/.tmp-… in a child process → fsync → hash; then `cache/commit.py`

How a shard gets into the cache, so that whatever dies at whatever moment, the cache holds all of it or nothing.

    write shards/.tmp-… in a child process → fsync → hash → rename → fsync of shards/ → one ledger transaction

The rename happens within the ledger transaction, after the lease was checked. SQLite lets one process in at a time, so
a worker that was overtaken never gets to rename, and nobody clears away a shard that is about to be recorded. A shard
found without a ledger row therefore belongs to a commit that died in between: `cache/commit.py`.

What is left of commits that died: shards that are complete are adopted, everything else is cleared away.
"""

import contextlib
import dataclasses
import errno
import json
import re
import secrets
import shutil
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from cache.common.errors import CacheError
from cache.common.files import fsync_folder
from cache.fingerprint import JSON, canonical_json
from cache.ledger import SHARD_NAME, WITH_FEATURES, Claim, Ledger, Outcome, ShardRow
from cache.shards import SUFFIXES, Backend, open_shard
from cache.shards.protocol import ShardData, ShardIndex
from cache.shards.writer import ShardWriter, Written, hash_files

if TYPE_CHECKING:
    from cache.remote.storage import Remote


_TEMPORARY = re.compile(r"\.tmp-(?P<token>\d+)-\d+-\d+")
_RESERVE_BYTES = 32 << 20
"""Left free on the disk, for the ledger and whoever else writes there."""

_serial = count()


@dataclass(frozen=True)
class Destination:
    """Where shards go and how they are recorded."""

    folder: Path
    """The cache's `shards/`."""
    backend: Backend
    ledger: Ledger
    fingerprint: str
    """Digest of the identity that all features in this cache have."""
    remote: "Remote | None" = None
    """The object store that has the cache, where this is a working copy."""


@dataclass(frozen=True, kw_only=True)
class Aside:
    """A shard that is written and not yet in the cache, and what became of its videos. Small: it can be sent around."""

    name: str
    """Of the temporary file or folder in `shards/`; empty where no video has features."""
    outcomes: tuple[Outcome, ...]
    """Those with features first, in the shard's order."""
    written: Written | None = None
    content: str = ""
    """See `ShardIndex.content`."""
    num_videos: int = 0
    num_frames: int = 0
    environment: str = ""
    """JSON: see `ShardRow.environment`."""
    files: Mapping[str, int] = field(default_factory=dict)
    """Where the cache is in an object store, and has the shard already: its files' sizes, see `Record.files`."""

    @classmethod
    def of(
        cls,
        path: Path,
        outcomes: tuple[Outcome, ...],
        written: Written,
        index: ShardIndex,
        environment: str,
        files: Mapping[str, int] | None = None,
    ) -> "Aside":
        """The shard at `path`, whose arrays `index` describes; the fields say what the others are."""
        return cls(
            name=path.name,
            outcomes=outcomes,
            written=written,
            content=index.content,
            num_videos=index.num_videos,
            num_frames=index.num_frames,
            environment=environment,
            files=files or {},
        )


def write_aside(
    destination: Destination,
    writer: ShardWriter,
    token: int,
    data: ShardData | None,
    outcomes: Sequence[Outcome],
    environment: Mapping[str, JSON],
    *,
    keep: bool = True,
) -> Aside:
    """Write a shard beside the others under a temporary name, durably; touches no ledger, so any machine can do it.

    As long as the claim with `token` is held, nobody clears it away. Where the cache is in an object store, the shard
    is there when this returns, and here too only with `keep`. CacheError where the disk or the store refuse.
    """
    ordered = tuple(_in_shard_order(data, outcomes))
    if data is None:
        return Aside(name="", outcomes=ordered)
    surroundings = canonical_json(dict(environment))
    data = dataclasses.replace(data, notes=_notes(destination.fingerprint, surroundings, ordered))
    temporary = temporary_path(destination.folder, token)
    try:
        written = _write(writer, temporary, destination.backend, data)
        files: dict[str, int] = {}
        if destination.remote is not None:
            files = destination.remote.upload(temporary, written.digest, destination.backend)
            if not keep:
                discard(temporary)
        return Aside.of(temporary, ordered, written, data.index, surroundings, files)
    except BaseException as error:
        discard(temporary)
        if isinstance(error, OSError):
            raise disk_error(error, destination.folder) from error
        raise


def _in_shard_order(data: ShardData | None, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Outcomes with features in the order of the shard's videos, then the others; CacheError where they disagree."""
    of = {outcome.video_id: outcome for outcome in outcomes}
    with_features = {video_id for video_id, outcome in of.items() if outcome.status in WITH_FEATURES}
    held = data.video_ids if data else ()
    if len(of) != len(outcomes) or with_features != set(held):
        raise CacheError(
            f"a shard of {len(held)} videos was given with {len(with_features)} outcomes that are done or suspect; "
            "each video with features needs one such outcome, and the other way round"
        )
    for i, video_id in enumerate(held):
        assert data is not None
        frames = int(data.offsets[i + 1] - data.offsets[i])
        if of[video_id].num_frames != frames:
            raise CacheError(
                f"video {video_id!r} has features of {frames} frames, but its outcome says {of[video_id].num_frames}"
            )
    return [of[video_id] for video_id in held] + [o for o in outcomes if o.video_id not in with_features]


def _notes(fingerprint: str, surroundings: str, outcomes: Sequence[Outcome]) -> str:
    """What `cache.commit.adopt` needs. Decode times are left out: equal work gives equal bytes."""
    rows = [{**dataclasses.asdict(o), "seconds": 0.0} for o in outcomes if o.status in WITH_FEATURES]
    return canonical_json({"fingerprint": fingerprint, "environment": surroundings, "outcomes": rows})


def _write(writer: ShardWriter, temporary: Path, backend: Backend, data: ShardData) -> Written:
    """Write the shard aside. What a failed fsync leaves is unknown, so the file goes and a new one is tried, once."""
    num_bytes = sum(features.nbytes for features in data.features.values())
    free_bytes = shutil.disk_usage(temporary.parent).free
    if free_bytes < num_bytes * 1.1 + _RESERVE_BYTES:
        raise OSError(errno.ENOSPC, f"{free_bytes >> 20} MiB are free, the next shard needs {num_bytes >> 20} MiB")
    try:
        return writer.write(temporary, backend, data)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        discard(temporary)
        return writer.write(temporary, backend, data)


def temporary_path(folder: Path, token: int) -> Path:
    """A name in `shards/` that nobody else has, for whoever holds the claim with `token`; 0 is nobody's."""
    # Several machines may write into one folder: neither process ids nor counters tell their files apart.
    return folder / f".tmp-{token}-{secrets.randbits(64)}-{next(_serial)}"


def token_of(name: str) -> int | None:
    """Token of the claim for which `name` in `shards/` was being written; None where it is no temporary name."""
    found = _TEMPORARY.fullmatch(name)
    return None if found is None else int(found["token"])


def is_temporary(name: str) -> bool:
    """Whether a name in `shards/` is of a shard that is being written, or was when its writer died."""
    return token_of(name) is not None


def remove(path: Path) -> None:
    """Remove a shard or what is left of one; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def discard(path: Path) -> None:
    """As `remove`; where the disk refuses even that, the next extraction clears up."""
    with contextlib.suppress(OSError):
        remove(path)


def disk_error(error: OSError, folder: Path) -> CacheError:
    """What the disk refused, and what to do, in words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CacheError(
            f"no space left for shards in {folder}: {error.strerror}. All that was committed is safe: "
            "free some space and run the same command again"
        )
    return CacheError(
        f"the disk refused to write a shard in {folder}: {error}. All that was committed is safe: "
        "look after the disk, then run the same command again"
    )


def commit_aside(destination: Destination, claim: Claim, aside: Aside) -> None:
    """Put a written shard and its rows into the cache; on disk when this returns.

    LeaseLostError where the claim was taken over, CacheError where the disk refuses; nothing is committed then, and
    the shard is gone.
    """
    temporary, remote = destination.folder / aside.name, destination.remote
    if remote is not None:
        remote.lease.hold()
    try:
        with destination.ledger.transaction() as connection:
            destination.ledger.check_claim(connection, claim)
            shard = shard_row(connection, destination, aside)
            destination.ledger.record(connection, claim.token, aside.outcomes, shard)
            if remote is not None:
                # Last, and while nobody else of this machine can write one: now it is in the cache.
                remote.commit(destination.ledger, connection, aside.outcomes, shard, aside.files)
                if shard is not None:
                    remote.copy.keep(temporary, shard)
            elif shard is not None:
                _publish(temporary, destination.folder / shard.name)
    except OSError as error:
        raise disk_error(error, destination.folder) from error
    finally:
        if aside.name:
            discard(temporary)


def shard_row(connection: sqlite3.Connection, destination: Destination, aside: Aside) -> ShardRow | None:
    """The row that the shard gets, with the next free number; None where there is no shard."""
    if aside.written is None:
        return None
    if destination.remote is not None:
        number = destination.ledger.applied(connection)
    else:
        number = connection.execute("SELECT coalesce(max(number) + 1, 0) FROM shards").fetchone()[0]
    return ShardRow(
        number=number,
        name=f"{number:06d}-{aside.written.digest[:16]}{SUFFIXES[destination.backend]}",
        digest=aside.written.digest,
        content=aside.content,
        num_videos=aside.num_videos,
        num_frames=aside.num_frames,
        num_bytes=aside.written.num_bytes,
        environment=aside.environment,
    )


def _publish(written: Path, final: Path) -> None:
    """Give a written shard its name, for good."""
    written.rename(final)
    try:
        fsync_folder(final.parent)
    except OSError:
        # Whether the name is on disk is unknown, and nothing refers to it yet: it shall not be found later.
        discard(final)
        raise


def recover(destination: Destination) -> list[str]:
    """Clear up after workers that died: free their leases, adopt or remove their shards. What was done, in words.

    CacheError where the disk refuses.
    """
    try:
        return _recover(destination)
    except OSError as error:
        raise disk_error(error, destination.folder) from error


def _recover(destination: Destination) -> list[str]:
    done = []
    with destination.ledger.transaction() as connection:
        destination.ledger.free_lapsed(connection, time.time())
        tokens = {row[0] for row in connection.execute("SELECT token FROM claims")}
        known = {row[0] for row in connection.execute("SELECT name FROM shards")}
        for name in sorted(entry.name for entry in destination.folder.iterdir() if entry.name not in known):
            path = destination.folder / name
            token, shard = token_of(name), SHARD_NAME.fullmatch(name)
            # In an object store the log says what is in the cache, and what is here is a copy.
            if shard and destination.remote is None and _adopted(destination, connection, path, shard["digest"]):
                done.append(f"adopted shard {name}, which was complete but not yet recorded")
            elif shard or (token is not None and token not in tokens):
                # Its writer may outlive its extraction by a moment; under another name it can put nothing more there.
                remove(path.rename(temporary_path(destination.folder, 0)))
                done.append(f"removed {name}, left over from an extraction that was interrupted")
        if done:
            fsync_folder(destination.folder)
    return done


def _adopted(destination: Destination, connection: sqlite3.Connection, path: Path, digest: str) -> bool:
    found = adopt(destination, connection, path, digest)
    if found and found[1].name != path.name:
        path.rename(path.with_name(found[1].name))
    return found is not None


def adopt(
    destination: Destination, connection: sqlite3.Connection, path: Path, digest: str
) -> tuple[tuple[Outcome, ...], ShardRow] | None:
    """Record a shard that is complete and whose videos are all still wanted; its rows, or None where it is not."""
    connection.execute("SAVEPOINT adoption")
    try:
        written = hash_files(path)
        index = open_shard(path, destination.backend).index
        notes = json.loads(index.notes)
        outcomes = tuple(Outcome(**row) for row in notes["outcomes"])
        same_bytes = written.digest.startswith(digest)
        same_videos = tuple(outcome.video_id for outcome in outcomes) == index.video_ids
        if not (same_bytes and same_videos and notes["fingerprint"] == destination.fingerprint):
            return None
        aside = Aside.of(path, outcomes, written, index, notes["environment"])
        shard = shard_row(connection, destination, aside)
        assert shard is not None
        destination.ledger.record(connection, None, outcomes, shard)
        return outcomes, shard
    except (CacheError, OSError, ValueError, KeyError, TypeError):
        connection.execute("ROLLBACK TO adoption")
        return None
    finally:
        connection.execute("RELEASE adoption")
