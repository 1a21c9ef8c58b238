"""The ledger's database: one SQLite row per video with what became of it, a row per claim and per shard.

Every change is one transaction, on disk when it returns (WAL, synchronous=FULL). Work is shared by claims: leases with
a fencing token. Claims and commits touch only their own rows through indexes, so their cost does not depend on how many
videos there are.
"""

import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from cache.common.errors import DamageError, LeaseLostError
from cache.common.files import from_json
from cache.description import new_cache_id
from cache.ledger import (
    STATUSES,
    WITH_FEATURES,
    Claim,
    ClaimedVideo,
    FileState,
    HeldLease,
    Outcome,
    Place,
    ShardRow,
    Status,
)
from cache.ledger.tables import FILES, SCHEMA
from cache.processes import LeaseWatch, is_dead, this_process
from cache.sqlite import Database

_ANEW = (
    "status = 'pending', claim = NULL, shard = NULL, position = NULL, reason = '', num_frames = 0,"
    " declared_frames = NULL, decoder_errors = 0, seconds = 0"
)
"""Assignments that make a video pending again and forget its features."""


class Ledger(Database):
    """An open ledger. Safe to use from several threads, and from a forked child, which opens its own connection."""

    def __init__(self, path: Path, cache_id: int = 0) -> None:
        """Raises `CacheError` if there is no ledger at `path`. Its use does so if it is not that of `cache_id`."""
        super().__init__(path, SCHEMA + FILES, cache_id, earlier=SCHEMA)
        self._watch = LeaseWatch()

    @classmethod
    def create(cls, path: Path, videos: Iterable[tuple[str, str]], cache_id: int = 0) -> "Ledger":
        """Make a new ledger with all `(id, path)` pending, numbered in the given order."""
        path.touch(exist_ok=False)
        ledger = cls(path, cache_id)
        ledger.make_tables()
        with ledger.transaction() as connection:
            # One by one: a million of them need no memory.
            connection.executemany("INSERT INTO videos (id, path) VALUES (?, ?)", videos)
        return ledger

    def identify(self) -> int:
        """Returns the cache's id, a new one if the ledger had none."""
        with self.transaction() as connection:
            if not (found := connection.execute("PRAGMA application_id").fetchone()[0]):
                found = new_cache_id()
                connection.execute(f"PRAGMA application_id = {found:d}")
        return found

    # -- claims -------------------------------------------------------------------------------------------------------

    def claim(self, owner: str, limit: int, lease_seconds: float) -> Claim | None:
        """Take up to `limit` pending, unclaimed videos in the order of the dataset; None if there are none.

        If there are none but videos are pending, others have claimed them: call again now and then, or stop. Claims of
        others that were not renewed for `lease_seconds`, as seen by the calls so far, are taken over.
        """
        with self.transaction() as connection:
            self.free_lapsed(connection, lease_seconds)
            rows = connection.execute(
                "SELECT number, id, path FROM videos INDEXED BY videos_free"
                " WHERE status = 'pending' AND claim IS NULL AND path != '' ORDER BY number LIMIT ?",
                (limit,),
            ).fetchall()
            if not rows:
                return None
            lease = (owner, time.time() + lease_seconds)
            token = connection.execute("INSERT INTO claims (owner, expires) VALUES (?, ?)", lease).lastrowid
            assert token is not None
            connection.executemany("UPDATE videos SET claim = ? WHERE number = ?", [(token, row[0]) for row in rows])
        return Claim(owner, token, tuple(ClaimedVideo(row[1], row[2]) for row in rows))

    def renew(self, claim: Claim, lease_seconds: float) -> None:
        """Extend the lease. Raises `LeaseLostError` if somebody else has taken the videos over."""
        with self.transaction() as connection:
            self.check_claim(connection, claim)
            # Always another value, also while the clock stands still or was set back to the moment of the last renewal.
            connection.execute(
                "UPDATE claims SET expires = CASE WHEN expires = :then THEN :then + 0.001 ELSE :then END"
                " WHERE token = :token",
                {"then": time.time() + lease_seconds, "token": claim.token},
            )

    def release(self, claim: Claim) -> None:
        """Give back the videos of the claim that were not committed; nothing happens if the claim was lost."""
        with self.transaction() as connection:
            free(connection, [claim.token])

    def leases(self) -> list[HeldLease]:
        """All claims, the oldest first."""
        rows = self._rows(
            "SELECT owner, token, expires, (SELECT count(*) FROM videos WHERE claim = token) FROM claims ORDER BY token"
        )
        return [HeldLease(owner=row[0], token=row[1], expires=row[2], num_videos=row[3]) for row in rows]

    # What follows takes the connection of a transaction: its caller decides what else is in that transaction.

    def check_claim(self, connection: sqlite3.Connection, claim: Claim) -> None:
        """Raises `LeaseLostError` unless `claim` still holds."""
        if connection.execute("SELECT 1 FROM claims WHERE token = ?", (claim.token,)).fetchone() is None:
            raise LeaseLostError(
                f"the lease of {claim.owner} on {len(claim.videos)} videos was taken over, because it was not renewed, "
                "or was ended by `cache leases --break`; its result is dropped. Nothing is wrong in the cache; if this "
                "happens often, this machine pauses or is too slow"
            )

    def free_lapsed(self, connection: sqlite3.Connection, lease_seconds: float) -> None:
        """Free the videos of claims whose owner is dead, and of others' that were not renewed for `lease_seconds`."""
        claims = connection.execute("SELECT token, owner, expires FROM claims").fetchall()
        owners = {row[1] for row in claims} - {this_process()} if claims else set()
        dead = {owner for owner in owners if is_dead(owner)}
        lapsed = self._watch.lapsed({row[0]: row[2] for row in claims if row[1] in owners}, lease_seconds)
        free(connection, [token for token, owner, _ in claims if token in lapsed or owner in dead])

    # -- changes ------------------------------------------------------------------------------------------------------

    def add(self, connection: sqlite3.Connection, videos: Iterable[tuple[str, str]]) -> None:
        """Make `(id, path)` the videos of the dataset: append those not known yet, pending; update the others' path.

        Rows of videos that are no longer among them stay, with an empty path, and no query below returns them: if such
        a video comes back, so do its features.
        """
        videos = list(videos)
        present = {video_id for video_id, _ in videos}
        gone = [row for row in connection.execute("SELECT id FROM videos WHERE path != ''") if row[0] not in present]
        connection.executemany("UPDATE videos SET path = '' WHERE id = ?", gone)
        connection.executemany(
            "INSERT INTO videos (id, path) VALUES (?, ?)"
            " ON CONFLICT (id) DO UPDATE SET path = excluded.path WHERE path != excluded.path",
            videos,
        )

    def record(
        self, connection: sqlite3.Connection, token: int | None, outcomes: Sequence[Outcome], shard: ShardRow | None
    ) -> None:
        """Write outcomes, and the row of the shard that holds those with features.

        With a token, only videos of that claim may change; without one, only pending, unclaimed videos (adoption).
        Raises `LeaseLostError` for any other video.
        """
        refused = self._write(connection, outcomes, shard, " AND status = 'pending' AND claim IS ?", (token,))
        if refused is not None:
            raise LeaseLostError(f"video {refused!r} was taken over by another extractor; this result is dropped")
        if token is not None:
            connection.execute(
                "DELETE FROM claims WHERE token = ? AND NOT EXISTS (SELECT 1 FROM videos WHERE claim = ?)",
                (token, token),
            )

    def replay(self, connection: sqlite3.Connection, outcomes: Sequence[Outcome], shard: ShardRow | None) -> None:
        """Write a commit that a log has recorded, whatever the rows and claims here say.

        Raises `DamageError` if it has videos that the ledger does not have.
        """
        refused = self._write(connection, outcomes, shard, "", ())
        if refused is not None:
            raise DamageError(f"{self.path}: video {refused!r} was committed, but the dataset does not have it")
        connection.execute("DELETE FROM claims WHERE token NOT IN (SELECT claim FROM videos WHERE claim IS NOT NULL)")

    def add_gone(self, connection: sqlite3.Connection, outcomes: Sequence[Outcome]) -> None:
        """Append those videos of a shard that the dataset does not have now, so that the others can be recorded."""
        ids = [(outcome.video_id,) for outcome in outcomes]
        connection.executemany("INSERT INTO videos (id, path) VALUES (?, '') ON CONFLICT (id) DO NOTHING", ids)

    @staticmethod
    def _write(
        connection: sqlite3.Connection,
        outcomes: Sequence[Outcome],
        shard: ShardRow | None,
        condition: str,
        values: tuple[int | None, ...],
    ) -> str | None:
        """Write a shard's row and the rows of videos. Returns the first video whose row does not meet `condition`."""
        if shard is not None:
            fields = vars(shard)
            marks = ", ".join("?" * len(fields))
            connection.execute(f"INSERT INTO shards ({', '.join(fields)}) VALUES ({marks})", tuple(fields.values()))
        position = 0
        for outcome in outcomes:
            place: tuple[int | None, int | None] = (None, None)
            if outcome.status in WITH_FEATURES:
                assert shard is not None
                place, position = (shard.number, position), position + 1
            details = (outcome.reason, outcome.num_frames, outcome.declared_frames)
            changed = connection.execute(
                "UPDATE videos SET status = ?, claim = NULL, shard = ?, position = ?, reason = ?, num_frames = ?,"
                f" declared_frames = ?, decoder_errors = ?, seconds = ? WHERE id = ?{condition}",
                (outcome.status, *place, *details, outcome.decoder_errors, outcome.seconds, outcome.video_id, *values),
            ).rowcount
            if changed != 1:
                return outcome.video_id
        Ledger.put_files(connection, {each.video_id: each.file for each in outcomes if each.file is not None})
        return None

    @staticmethod
    def put_files(connection: sqlite3.Connection, files: Mapping[str, FileState]) -> None:
        """Record the files of videos as they are, or were extracted."""
        connection.execute(FILES)
        connection.executemany(
            "INSERT INTO files (id, size, modified_ns, hash, first_hash) VALUES (?, ?, ?, ?, ?) ON CONFLICT (id)"
            " DO UPDATE SET size = excluded.size, modified_ns = excluded.modified_ns, hash = excluded.hash",
            [(video_id, each.size, each.modified_ns, each.hash, each.hash) for video_id, each in files.items()],
        )

    def requeue(
        self, connection: sqlite3.Connection, statuses: Sequence[Status] = (), videos: Sequence[str] = ()
    ) -> int:
        """Make pending again: all videos of these statuses, and `videos`. Returns how many there were.

        Their features are forgotten. Nothing happens to videos that are pending, which somebody may be at work on.
        """
        marks = ", ".join("?" * len(statuses))
        anew = f"UPDATE videos SET {_ANEW} WHERE path != '' AND status != 'pending' AND"
        count = connection.execute(f"{anew} status IN ({marks})", tuple(statuses)).rowcount
        return count + sum(connection.execute(f"{anew} id = ?", (video_id,)).rowcount for video_id in videos)

    def accept(self, connection: sqlite3.Connection, videos: Sequence[str]) -> int:
        """Make those of `videos` done that are suspect; their reasons stay as notes. Returns how many there were."""
        done = "UPDATE videos SET status = 'done' WHERE id = ? AND status = 'suspect'"
        return sum(connection.execute(done, (video_id,)).rowcount for video_id in videos)

    def forget_shard(self, connection: sqlite3.Connection, number: int) -> int:
        """Remove a shard's row and make its videos pending again. Returns how many there were."""
        connection.execute("DELETE FROM shards WHERE number = ?", (number,))
        return connection.execute(f"UPDATE videos SET {_ANEW} WHERE shard = ?", (number,)).rowcount

    def forget_video(self, connection: sqlite3.Connection, video_id: str) -> None:
        """Make a video pending again, whatever its row says."""
        connection.execute(f"UPDATE videos SET {_ANEW} WHERE id = ?", (video_id,))

    def applied(self, connection: sqlite3.Connection) -> int:
        """Number of records of a log in an object store that this ledger has followed; 0 if it follows none."""
        return connection.execute("PRAGMA user_version").fetchone()[0]

    def set_applied(self, connection: sqlite3.Connection, count: int) -> None:
        """Set that number, in the transaction that applies the records."""
        connection.execute(f"PRAGMA user_version = {count:d}")

    # -- queries ------------------------------------------------------------------------------------------------------

    def counts(self) -> dict[Status, int]:
        """Number of videos of each status."""
        found = dict(self._rows("SELECT status, count(*) FROM videos WHERE path != '' GROUP BY status"))
        return {status: found.get(status, 0) for status in STATUSES}

    def outcomes(self, status: Status | None = None) -> Iterator[Outcome]:
        """Yields what became of each video, in id order; only of videos with `status` if it is given."""
        names = ("video_id", "status", "reason", "num_frames", "declared_frames", "decoder_errors", "seconds")
        chosen, values = ("", ()) if status is None else (" AND status = ?", (status,))
        page = f"FROM videos WHERE id > ? AND path != ''{chosen} ORDER BY id LIMIT 10000"
        last = ""
        # Page by page, so that neither memory nor the time for which a lock is held grows with the ledger.
        while rows := self._rows(f"SELECT id, {', '.join(names[1:])} {page}", (last, *values)):
            for row in rows:
                yield Outcome(**dict(zip(names, row, strict=True)))
            last = rows[-1][0]

    def files(self) -> dict[str, FileState | None]:
        """The file of each video that is not pending, as it was extracted; None if that is not known."""
        rows = self._files("videos.id, size, modified_ns, hash", "status != 'pending'")
        try:
            found = msgspec.convert(rows, list[tuple[str, int | None, int | None, str | None]])
        except ValueError as error:
            raise DamageError(f"{self.path} is damaged: {error}") from error
        return {
            video_id: None
            if size is None or modified_ns is None or digest is None
            else FileState(size=size, modified_ns=modified_ns, hash=digest)
            for video_id, size, modified_ns, digest in found
        }

    def replaced_files(self) -> dict[str, str]:
        """Hashes of the files that have changed since their first extraction, by video."""
        return dict(self._files("videos.id, hash", "hash != first_hash"))

    def _files(self, columns: str, condition: str) -> list[tuple[Any, ...]]:
        known = self._rows("SELECT 1 FROM sqlite_master WHERE name = 'files'")
        files = "files" if known else "(SELECT id, NULL size, NULL modified_ns, NULL hash, NULL first_hash FROM videos)"
        return self._rows(f"SELECT {columns} FROM videos LEFT JOIN {files} USING (id) WHERE path != '' AND {condition}")

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with self.reading() as connection:
            return connection.execute(query, values).fetchall()

    def num_frames(self) -> int:
        """Frames of all videos with features; frames in shards whose videos were requeued do not count."""
        frames = "SELECT coalesce(sum(num_frames), 0) FROM videos WHERE shard IS NOT NULL AND path != ''"
        return self._rows(frames)[0][0]

    def places(self) -> list[Place]:
        """Where the features of each video are, in id order."""
        rows = self._rows(
            "SELECT id, shard, position, num_frames FROM videos WHERE shard IS NOT NULL AND path != '' ORDER BY id"
        )
        try:
            return msgspec.convert(rows, list[Place])
        except ValueError as error:
            raise DamageError(f"{self.path} is damaged: {error}") from error

    def shards(self) -> list[ShardRow]:
        """All shards, in the order in which they were committed."""
        names = tuple(ShardRow.__dataclass_fields__)
        rows = self._rows(f"SELECT {', '.join(names)} FROM shards ORDER BY number")
        try:
            return from_json([dict(zip(names, row, strict=True)) for row in rows], list[ShardRow])
        except ValueError as error:
            raise DamageError(f"{self.path} lists a shard that no ledger of ours does: {error}") from error


def free(connection: sqlite3.Connection, tokens: Sequence[int]) -> None:
    """End these claims: their videos can be claimed again, and commits with these tokens are refused."""
    for token in tokens:
        connection.execute("UPDATE videos SET claim = NULL WHERE claim = ?", (token,))
        connection.execute("DELETE FROM claims WHERE token = ?", (token,))
