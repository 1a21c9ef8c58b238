"""SQLite for many processes, threads and forks: a connection per process, changes that are on disk when they return."""

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cache.errors import CacheError

_BUSY_SECONDS = 120.0


class Database:
    """An open database file. Safe to use from several threads, and from a forked child, which opens its own."""

    def __init__(self, path: Path) -> None:
        """CacheError where there is no file at `path`."""
        if not path.is_file():
            raise CacheError(f"{path} is missing; this cache is incomplete. Extract the dataset into a new one")
        self.path = path
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._connection: sqlite3.Connection | None = None
        self._inherited: sqlite3.Connection | None = None

    def create(self, schema: str) -> None:
        """Turn an empty file into a database with a write-ahead log and these tables."""
        with self.reading() as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(f"BEGIN; {schema} COMMIT;")

    def close(self) -> None:
        """Close the connection, which folds the write-ahead log into the file; the next call opens a new one."""
        with self._lock:
            if self._connection is not None and self._process == os.getpid():
                self._connection.close()
            self._connection = None

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One change, all or nothing, alone among all processes; on disk when it is left without an error."""
        with self.reading() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        if self._process != os.getpid():
            # After a fork: neither the lock nor the connection may be used. SQLite forbids even closing the latter.
            self._inherited, self._lock, self._process = self._connection, threading.RLock(), os.getpid()
            self._connection = None
        with self._lock, self._translated():
            if self._connection is None:
                self._connection = self._open()
            yield self._connection

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        for pragma in ("synchronous = FULL", "trusted_schema = OFF", "cell_size_check = ON"):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise CacheError(f"{self.path} cannot be used: {error}") from error
