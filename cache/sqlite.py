"""SQLite for many processes, threads and forks: one connection a process, changes on disk when they return."""

import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from cache.common.errors import CacheError, DamageError, UnreadableError
from cache.common.files import raise_if_unreadable

_BUSY_SECONDS = 120.0

_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}
"""Errors that tell of what is in the file."""

_ADVICE = {
    sqlite3.SQLITE_FULL: "free some space",
    sqlite3.SQLITE_IOERR: "check the disk and its free space",
    sqlite3.SQLITE_CANTOPEN: "check permissions and open files (`ulimit -n`)",
    sqlite3.SQLITE_PERM: "check permissions",
    sqlite3.SQLITE_READONLY: "check permissions",
    sqlite3.SQLITE_NOMEM: "check the free memory",
    sqlite3.SQLITE_BUSY: "wait for other processes",
}
"""What to do about errors that tell nothing about the file."""


class Database:
    """An open database file. Safe to use from several threads, and from a forked child, which opens its own."""

    def __init__(self, path: Path, schema: str, owner: int = 0, *, earlier: str) -> None:
        """`schema` is the SQL that makes the tables; `owner` the file's `application_id`, 0 for any.

        Tables of the schema `earlier` are accepted too.

        Raises `DamageError` if there is no plain file at `path`.
        """
        try:
            plain = stat.S_ISREG(path.lstat().st_mode)
        except OSError as error:
            raise_if_unreadable(error, path)
            plain = False
        if not plain:
            raise DamageError(
                f"{path} is missing or not a file; `mrrn cache repair {path.parent}` makes it anew from the shards"
            )
        self.path, self._schema, self._earlier, self._owner = path, schema, earlier, owner
        self._inherited: sqlite3.Connection | None = None
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None

    def make_tables(self) -> None:
        """Turn an empty file into a database with a write-ahead log and the tables."""
        with self._translated():
            connection = self._connect()
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(f"BEGIN; {self._schema} PRAGMA application_id = {self._owner:d}; COMMIT;")
            self._connection = connection

    def close(self) -> None:
        """Close the connection, which folds the write-ahead log into the file; the next call opens a new one."""
        with self._lock:
            if self._connection is not None and self._process == os.getpid():
                self._connection.close()
            self._connection = None

    @contextmanager
    def transaction(self, *, keep: bool = True) -> Iterator[sqlite3.Connection]:
        """One change, all or nothing, alone among all processes; on disk when it is left without an error.

        Unless `keep`, it is undone when it is left.
        """
        with self.reading() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT" if keep else "ROLLBACK")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, for queries."""
        if self._process != os.getpid():
            # After a fork neither the lock nor the connection may be used. SQLite forbids even closing it.
            self._inherited = self._connection
            self._start()
        with self._lock, self._translated():
            if self._connection is None:
                self._connection = self._connect()
                # Tables, triggers and views that are not ours could run foreign SQL.
                if _tables(self._connection) not in map(_expected_tables, (self._schema, self._earlier)):
                    raise DamageError(
                        f"{self.path} has other tables than a ledger of ours; it is damaged or not to be trusted"
                    )
                if self._owner and self._connection.execute("PRAGMA application_id").fetchone()[0] != self._owner:
                    raise CacheError(
                        f"{self.path} is the ledger of another cache: cache.json beside it has another id. Put this "
                        "cache's own ledger back; or move that one away, and `mrrn cache repair "
                        f"{self.path.parent}` makes a new one from the shards"
                    )
            yield self._connection

    def _check_beside(self) -> None:
        """Refuse what SQLite would follow: links, and journals, whose content it would write into the file.

        With a write-ahead log there never is a journal, whenever a process dies.
        """
        for suffix, allowed in (("-journal", False), ("-wal", True), ("-shm", True)):
            beside = self.path.with_name(self.path.name + suffix)
            with suppress(FileNotFoundError):
                if not (stat.S_ISREG(beside.lstat().st_mode) and allowed):
                    raise DamageError(
                        f"{beside} never belongs to a ledger of ours; "
                        f"`mrrn cache repair {self.path.parent}` makes the ledger anew from the shards"
                    )

    def _connect(self) -> sqlite3.Connection:
        self._check_beside()
        connection = sqlite3.connect(
            self._address(), uri=True, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        for pragma in ("synchronous = FULL", "trusted_schema = OFF", "cell_size_check = ON"):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    def _address(self) -> str:
        """The URI to open. In a folder without write access, SQLite cannot share a write-ahead log: open read-only."""
        address = f"file:{quote(str(self.path.resolve()))}"
        if os.access(self.path.parent, os.W_OK):
            return address
        log = self.path.with_name(f"{self.path.name}-wal")
        return f"{address}?mode=ro" if log.exists() else f"{address}?immutable=1"

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            todo = _ADVICE.get(code)
            next_step = f". All that was committed is safe: {todo}, then run the same command again" if todo else ""
            kind = UnreadableError if todo else DamageError if code in _DAMAGED else CacheError
            raise kind(f"{self.path} cannot be used: {error}{next_step}") from error


def _tables(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    """Name and SQL of everything defined, except SQLite's own."""
    return connection.execute(
        "SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name"
    ).fetchall()


def _expected_tables(schema: str) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(schema)
        return _tables(connection)
