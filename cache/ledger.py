"""What the ledger's rows say, as values: outcomes of videos, claims on them, shards and places in them.

The record of what happened to each video: SQLite, one row per video, work shared by leases with a fencing token.

Every change is one transaction, on disk when it returns (WAL, synchronous=FULL). Claims and commits touch only their
own rows through indexes, so their cost does not depend on how many videos there are.

Whether a ledger's rows make sense: questions in SQL, each answered by the ids of the videos that do not.
"""

import re
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple, get_args

from cache.common.errors import DamageError, LeaseLostError
from cache.processes import is_dead
from cache.sqlite import Database

Status = Literal["pending", "done", "suspect", "failed"]

STATUSES: Final[tuple[Status, ...]] = get_args(Status)

SHARD_NAME: Final = re.compile(r"\d{6,}-(?P<digest>[0-9a-f]{16})\.(h5|zarr)")
"""Number, beginning of the hash over its bytes, format."""

WITH_FEATURES: Final[tuple[Status, ...]] = ("done", "suspect")
"""Statuses of videos whose features are in a shard."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one video."""

    video_id: str
    status: Status
    reason: str = ""
    """Why it failed or is suspect."""
    num_frames: int = 0
    """Frames decoded and cached."""
    declared_frames: int | None = None
    """Frames the file's header promises; None where it does not say."""
    decoder_errors: int = 0
    """Errors the decoder reported on the way."""
    seconds: float = 0.0
    """Time spent decoding."""

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status of video {self.video_id!r} is {self.status!r}; expected one of {STATUSES}")


class ClaimedVideo(NamedTuple):
    """One video to work on."""

    id: str
    path: str
    """Relative to the dataset's root."""


@dataclass(frozen=True)
class Claim:
    """The right to commit some videos, until somebody else takes them after `expires`."""

    owner: str
    token: int
    """Fencing token: later claims have larger ones, and a token that was taken away never comes back."""
    videos: tuple[ClaimedVideo, ...]
    expires: float
    """Unix time in seconds."""


@dataclass(frozen=True, kw_only=True)
class ShardRow:
    """What the ledger knows of one shard."""

    number: int
    name: str
    """Of the file or folder in `shards/`."""
    digest: str
    """Over its bytes; see `cache.shards.writer.hash_files`."""
    content: str
    """Over what it says; see `ShardIndex.content`."""
    num_videos: int
    num_frames: int
    num_bytes: int
    environment: str
    """JSON: the fingerprint's environment fields as they were when this shard was made."""

    def __post_init__(self) -> None:
        numbers = (self.number, self.num_videos, self.num_frames, self.num_bytes)
        texts = (self.name, self.digest, self.content, self.environment)
        plain = all(isinstance(n, int) and n >= 0 for n in numbers) and all(isinstance(t, str) for t in texts)
        if not plain or not SHARD_NAME.fullmatch(self.name):
            raise DamageError(f"the ledger lists shard {self.name!r}, which no ledger of ours does; it is damaged")


class Place(NamedTuple):
    """Where a video's features are."""

    video_id: str
    shard: int
    position: int
    num_frames: int


__all__ = ["STATUSES", "WITH_FEATURES", "Claim", "ClaimedVideo", "Ledger", "Outcome", "Place", "ShardRow", "Status"]

_SCHEMA = """
CREATE TABLE videos (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    path TEXT NOT NULL,
    status TEXT NOT NULL DEFAULT 'pending',
    claim INTEGER,
    shard INTEGER,
    position INTEGER,
    reason TEXT NOT NULL DEFAULT '',
    num_frames INTEGER NOT NULL DEFAULT 0,
    declared_frames INTEGER,
    decoder_errors INTEGER NOT NULL DEFAULT 0,
    seconds REAL NOT NULL DEFAULT 0
);
CREATE INDEX videos_free ON videos (number) WHERE status = 'pending' AND claim IS NULL;
CREATE INDEX videos_claimed ON videos (claim) WHERE claim IS NOT NULL;
CREATE INDEX videos_status ON videos (status);
CREATE INDEX videos_shard ON videos (shard) WHERE shard IS NOT NULL;
CREATE TABLE claims (token INTEGER PRIMARY KEY AUTOINCREMENT, owner TEXT NOT NULL, expires REAL NOT NULL);
CREATE TABLE shards (
    number INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    digest TEXT NOT NULL,
    content TEXT NOT NULL,
    num_videos INTEGER NOT NULL,
    num_frames INTEGER NOT NULL,
    num_bytes INTEGER NOT NULL,
    environment TEXT NOT NULL
);
"""


_ANEW = (
    "status = 'pending', claim = NULL, shard = NULL, position = NULL, reason = '', num_frames = 0,"
    " declared_frames = NULL, decoder_errors = 0, seconds = 0"
)
"""What makes a video's row like new."""


class Ledger:
    """An open ledger. Safe to use from several threads, and from a forked child, which opens its own connection."""

    def __init__(self, path: Path) -> None:
        """CacheError where there is no ledger at `path`."""
        self.path = path
        self._database = Database(path, _SCHEMA)

    @classmethod
    def create(cls, path: Path, videos: Iterable[tuple[str, str]]) -> "Ledger":
        """A new ledger with all `(id, path)` pending, numbered in the given order."""
        path.touch(exist_ok=False)
        ledger = cls(path)
        ledger._database.create()
        with ledger.transaction() as connection:
            connection.executemany("INSERT INTO videos (id, path) VALUES (?, ?)", videos)
        return ledger

    def close(self) -> None:
        """Close the file; the next call opens it again."""
        self._database.close()

    def reading(self) -> AbstractContextManager[sqlite3.Connection]:
        """The connection, for queries."""
        return self._database.reading()

    def transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        """One change, all or nothing, alone among all processes; on disk when it is left without an error."""
        return self._database.transaction()

    # -- sharing the work ---------------------------------------------------------------------------------------------

    def claim(self, owner: str, limit: int, lease_seconds: float) -> Claim | None:
        """Take up to `limit` pending videos that nobody has, in the order of the dataset; None where there are none.

        None with videos still pending means that others have them: wait until `next_expiry`, or be done.
        """
        now = time.time()
        with self.transaction() as connection:
            self.free_lapsed(connection, now)
            rows = connection.execute(
                "SELECT number, id, path FROM videos INDEXED BY videos_free"
                " WHERE status = 'pending' AND claim IS NULL ORDER BY number LIMIT ?",
                (limit,),
            ).fetchall()
            if not rows:
                return None
            expires = now + lease_seconds
            token = connection.execute("INSERT INTO claims (owner, expires) VALUES (?, ?)", (owner, expires)).lastrowid
            assert token is not None
            connection.executemany("UPDATE videos SET claim = ? WHERE number = ?", [(token, row[0]) for row in rows])
        return Claim(owner, token, tuple(ClaimedVideo(row[1], row[2]) for row in rows), expires)

    def renew(self, claim: Claim, lease_seconds: float) -> Claim:
        """Put the end of the lease off; LeaseLostError where somebody else has taken the videos over."""
        expires = time.time() + lease_seconds
        with self.transaction() as connection:
            self.check_claim(connection, claim)
            connection.execute("UPDATE claims SET expires = ? WHERE token = ?", (expires, claim.token))
        return Claim(claim.owner, claim.token, claim.videos, expires)

    def release(self, claim: Claim) -> None:
        """Give back what of the claim was not committed; nothing happens where it was lost already."""
        with self.transaction() as connection:
            _free(connection, [claim.token])

    def next_expiry(self) -> float | None:
        """Unix time at which the next lease ends; None where nobody has any."""
        with self.reading() as connection:
            return connection.execute("SELECT min(expires) FROM claims").fetchone()[0]

    def check_claim(self, connection: sqlite3.Connection, claim: Claim) -> None:
        """LeaseLostError unless `claim` still holds, within a transaction."""
        if connection.execute("SELECT 1 FROM claims WHERE token = ?", (claim.token,)).fetchone() is None:
            raise LeaseLostError(
                f"the lease of {claim.owner} on {len(claim.videos)} videos ended and they were taken over; its result "
                "is dropped. Nothing is wrong in the cache; if this happens often, this machine pauses or is too slow"
            )

    def free_lapsed(self, connection: sqlite3.Connection, now: float) -> None:
        """Free what dead owners hold and whose lease has ended, within a transaction."""
        claims = connection.execute("SELECT token, owner, expires FROM claims").fetchall()
        dead = {owner for owner in {row[1] for row in claims} if is_dead(owner)}
        _free(connection, [token for token, owner, expires in claims if expires <= now or owner in dead])

    def add(self, videos: Iterable[tuple[str, str]]) -> int:
        """Put the `(id, path)` that are not known yet behind the others, pending; how many they were.

        Of those that are known, the path is brought up to date.
        """
        with self.transaction() as connection:
            return self.add_within(connection, videos)

    def add_within(self, connection: sqlite3.Connection, videos: Iterable[tuple[str, str]]) -> int:
        """As `add`, within a transaction."""
        count = "SELECT count(*) FROM videos"
        before = connection.execute(count).fetchone()[0]
        connection.executemany(
            "INSERT INTO videos (id, path) VALUES (?, ?)"
            " ON CONFLICT (id) DO UPDATE SET path = excluded.path WHERE path != excluded.path",
            videos,
        )
        return connection.execute(count).fetchone()[0] - before

    # -- results ------------------------------------------------------------------------------------------------------

    def record(
        self, connection: sqlite3.Connection, token: int | None, outcomes: Sequence[Outcome], shard: ShardRow | None
    ) -> None:
        """Write outcomes, and the shard that holds those with features, within a transaction.

        With a token, only videos that this claim holds; without, only pending ones that nobody has (adoption).
        """
        for outcome in self._written(connection, outcomes, shard, " AND status = 'pending' AND claim IS ?", (token,)):
            raise LeaseLostError(
                f"video {outcome.video_id!r} was taken over by another extractor; this result is dropped"
            )
        if token is not None:
            connection.execute(
                "DELETE FROM claims WHERE token = ?1 AND NOT EXISTS (SELECT 1 FROM videos WHERE claim = ?1)", (token,)
            )

    def replay(self, connection: sqlite3.Connection, outcomes: Sequence[Outcome], shard: ShardRow | None) -> None:
        """Write what was committed elsewhere, within a transaction, whatever the rows and claims here say.

        DamageError where it speaks of videos that the ledger does not have.
        """
        for outcome in self._written(connection, outcomes, shard, "", ()):
            raise DamageError(
                f"{self.path}: video {outcome.video_id!r} was committed, and the dataset does not have it"
            )
        connection.execute("DELETE FROM claims WHERE token NOT IN (SELECT claim FROM videos WHERE claim IS NOT NULL)")

    def _written(
        self,
        connection: sqlite3.Connection,
        outcomes: Sequence[Outcome],
        shard: ShardRow | None,
        condition: str,
        values: tuple[int | None, ...],
    ) -> Iterator[Outcome]:
        """Write a shard's row and those of videos, where they meet `condition`; gives out those that do not."""
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
            changed = connection.execute(
                "UPDATE videos SET status = ?, claim = NULL, shard = ?, position = ?, reason = ?, num_frames = ?,"
                f" declared_frames = ?, decoder_errors = ?, seconds = ? WHERE id = ?{condition}",
                (outcome.status, *place, *_details(outcome), outcome.video_id, *values),
            ).rowcount
            if changed != 1:
                yield outcome

    def requeue(self, statuses: Sequence[Status]) -> int:
        """Make all videos of these statuses pending again; how many there were. Their old features are forgotten."""
        with self.transaction() as connection:
            return self.requeue_within(connection, statuses)

    def requeue_within(self, connection: sqlite3.Connection, statuses: Sequence[Status]) -> int:
        """As `requeue`, within a transaction."""
        marks = ", ".join("?" * len(statuses))
        return connection.execute(f"UPDATE videos SET {_ANEW} WHERE status IN ({marks})", tuple(statuses)).rowcount

    def forget_shard(self, connection: sqlite3.Connection, number: int) -> int:
        """Strike a shard out, within a transaction; its videos become pending again. How many they were."""
        connection.execute("DELETE FROM shards WHERE number = ?", (number,))
        return connection.execute(f"UPDATE videos SET {_ANEW} WHERE shard = ?", (number,)).rowcount

    def forget_video(self, connection: sqlite3.Connection, video_id: str) -> None:
        """Make a video pending again, within a transaction, whatever its row says."""
        connection.execute(f"UPDATE videos SET {_ANEW} WHERE id = ?", (video_id,))

    def applied(self, connection: sqlite3.Connection) -> int:
        """How many records of a log elsewhere this ledger has followed; 0 where it follows none."""
        return connection.execute("PRAGMA user_version").fetchone()[0]

    def set_applied(self, connection: sqlite3.Connection, count: int) -> None:
        """The same, set within a transaction, together with what the records say."""
        connection.execute(f"PRAGMA user_version = {count:d}")

    # -- looking ------------------------------------------------------------------------------------------------------

    def counts(self) -> dict[Status, int]:
        """Videos of each status."""
        with self.reading() as connection:
            found = dict(connection.execute("SELECT status, count(*) FROM videos GROUP BY status").fetchall())
        return {status: found.get(status, 0) for status in STATUSES}

    def outcomes(self, status: Status | None = None) -> Iterator[Outcome]:
        """What became of each video, in id order; of those with one status where it is given."""
        columns = "id, status, reason, num_frames, declared_frames, decoder_errors, seconds"
        chosen = "" if status is None else "AND status = ?"
        last = ""
        while True:
            # Page by page, so that neither memory nor the time for which a lock is held grows with the ledger.
            with self.reading() as connection:
                rows = connection.execute(
                    f"SELECT {columns} FROM videos WHERE id > ? {chosen} ORDER BY id LIMIT 10000",
                    (last,) if status is None else (last, status),
                ).fetchall()
            if not rows:
                return
            for row in rows:
                yield Outcome(**dict(zip(Outcome.__dataclass_fields__, row, strict=True)))
            last = rows[-1][0]

    def num_frames(self) -> int:
        """Frames cached of all videos; what a shard holds of videos that were queued again does not count."""
        with self.reading() as connection:
            return connection.execute(
                "SELECT coalesce(sum(num_frames), 0) FROM videos WHERE shard IS NOT NULL"
            ).fetchone()[0]

    def places(self) -> list[Place]:
        """Where the features of each video are, in id order."""
        with self.reading() as connection:
            rows = connection.execute(
                "SELECT id, shard, position, num_frames FROM videos WHERE shard IS NOT NULL ORDER BY id"
            )
            try:
                return [Place(str(row[0]), int(row[1]), int(row[2]), int(row[3])) for row in rows]
            except (ValueError, TypeError) as error:
                raise DamageError(f"{self.path} is damaged: {error}") from error

    def shards(self) -> list[ShardRow]:
        """All shards, in the order in which they were committed."""
        with self.reading() as connection:
            names = ", ".join(ShardRow.__dataclass_fields__)
            rows = connection.execute(f"SELECT {names} FROM shards ORDER BY number").fetchall()
        return [ShardRow(**dict(zip(ShardRow.__dataclass_fields__, row, strict=True))) for row in rows]


def _free(connection: sqlite3.Connection, tokens: Sequence[int]) -> None:
    for token in tokens:
        connection.execute("UPDATE videos SET claim = NULL WHERE claim = ?", (token,))
        connection.execute("DELETE FROM claims WHERE token = ?", (token,))


def _details(outcome: Outcome) -> tuple[str, int, int | None, int, float]:
    return (
        outcome.reason,
        outcome.num_frames,
        outcome.declared_frames,
        outcome.decoder_errors,
        outcome.seconds,
    )


_ALL = ", ".join(f"'{status}'" for status in STATUSES)
_WITH_FEATURES = ", ".join(f"'{status}'" for status in WITH_FEATURES)

_QUESTIONS = {
    "its status is unknown": f"status NOT IN ({_ALL})",
    "its row holds text where a number belongs, or the other way round": (
        "typeof(id) != 'text' OR typeof(path) != 'text' OR typeof(reason) != 'text'"
        " OR typeof(num_frames) != 'integer' OR typeof(decoder_errors) != 'integer' OR typeof(seconds) != 'real'"
        " OR typeof(shard) NOT IN ('integer', 'null') OR typeof(position) NOT IN ('integer', 'null')"
        " OR typeof(declared_frames) NOT IN ('integer', 'null') OR typeof(claim) NOT IN ('integer', 'null')"
    ),
    "it counts as extracted, but the ledger does not say where its features are": (
        f"status IN ({_WITH_FEATURES}) AND (shard IS NULL OR position IS NULL OR position < 0 OR num_frames < 1)"
    ),
    "it counts as not extracted, but the ledger says where its features are": (
        f"status NOT IN ({_WITH_FEATURES}) AND (shard IS NOT NULL OR position IS NOT NULL OR num_frames != 0)"
    ),
    "its features are in a shard that the ledger does not list": (
        "shard IS NOT NULL AND shard NOT IN (SELECT number FROM shards)"
    ),
    "another video has the same place in the same shard": (
        "shard IS NOT NULL AND (shard, position) IN"
        " (SELECT shard, position FROM videos WHERE shard IS NOT NULL GROUP BY shard, position HAVING count(*) > 1)"
    ),
    "it is claimed by a worker that the ledger does not list": (
        "claim IS NOT NULL AND claim NOT IN (SELECT token FROM claims)"
    ),
    "it is claimed, but not pending": "claim IS NOT NULL AND status != 'pending'",
}


def odd_rows(connection: sqlite3.Connection) -> Iterator[tuple[str, list[str]]]:
    """What is wrong, and the ids of the videos whose rows are so."""
    for what, where in _QUESTIONS.items():
        ids = [str(row[0]) for row in connection.execute(f"SELECT id FROM videos WHERE {where} ORDER BY id")]
        if ids:
            yield what, ids


def broken_structure(connection: sqlite3.Connection) -> list[str]:
    """What SQLite itself finds wrong with the file, in its words."""
    return [row[0] for row in connection.execute("PRAGMA integrity_check(20)") if row[0] != "ok"]
