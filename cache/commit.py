"""How a shard gets into the cache, so that whatever dies at whatever moment, the cache holds all of it or nothing.

    write shards/.tmp-… in a child process → fsync → hash → rename → fsync of shards/ → one ledger transaction

The rename happens within the ledger transaction, after the lease was checked. SQLite lets one process in at a time, so
a worker that was overtaken never gets to rename, and nobody clears away a shard that is about to be recorded. A shard
found without a ledger row therefore belongs to a commit that died in between: `cache/recovery.py`.
"""

import sqlite3
from pathlib import Path

from cache.aside import Aside, Destination, discard, disk_error
from cache.files import fsync_folder
from cache.rows import Claim, ShardRow
from cache.shards import SUFFIXES


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
