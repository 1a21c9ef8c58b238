"""What is left of commits that died: shards that are complete are adopted, everything else is cleared away."""

import json
import sqlite3
import time
from pathlib import Path

from cache.aside import Aside, Destination, disk_error, remove, temporary_path, token_of
from cache.commit import shard_row
from cache.errors import CacheError
from cache.files import fsync_folder
from cache.rows import SHARD_NAME, Outcome, ShardRow
from cache.shards import open_shard
from cache.shards.writing import hash_files


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
