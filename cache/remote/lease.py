"""Who extends a cache in an object store: one driver at a time, by a lease that it renews.

The lease keeps a second driver from beginning. That nothing is committed twice does not hang on it, nor on clocks:
that is the log's doing, which has room for one record at each position.
"""

import contextlib
import json
import threading
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Final

from cache.common.errors import CacheError
from cache.common.files import from_json
from cache.processes import is_dead, this_process
from cache.remote.client import Objects

NAME: Final = "driver.json"
LEASE_SECONDS: Final = 120.0
"""How long a driver that gives no sign of life keeps others out (one that died on this machine does not)."""

_MAX_BYTES = 4096
_ATTEMPTS = 8


@dataclass(frozen=True, kw_only=True)
class LeaseRecord:
    """The content of the lease."""

    driver: str
    """A working copy; several processes of one machine may share it."""
    owner: str
    """The process that wrote this."""
    until: float
    """Unix time in seconds, by the driver's clock."""


class DriverLease:
    """This working copy's right to extend the cache. Renewed by a thread from the first `hold` until `release`."""

    def __init__(self, objects: Objects, driver: str) -> None:
        self._objects, self._driver = objects, driver
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._renewer: threading.Thread | None = None
        self._lost = ""

    def hold(self) -> None:
        """Take the lease, or see that it is still ours; CacheError that names the driver that has it."""
        with self._lock:
            if self._lost:
                raise CacheError(self._lost)
            if self._renewer is None:
                self._take()
                self._stop.clear()
                self._renewer = threading.Thread(target=self._renew, name="driver-lease", daemon=True)
                self._renewer.start()

    @property
    def held(self) -> bool:
        """Whether this process renews it."""
        return self._renewer is not None

    def release(self, *, for_all: bool) -> None:
        """Renew it no longer; let others in, unless processes of this working copy go on (`for_all` is False)."""
        with self._lock:
            if self._renewer is None:
                return
            self._stop.set()
            self._renewer.join()
            self._renewer = None
            # Where the store does not answer, the lease lapses by itself.
            with contextlib.suppress(CacheError):
                if for_all and not self._lost and (found := self._read()) and found[0].driver == self._driver:
                    self._objects.delete([NAME])

    def _take(self) -> None:
        for _ in range(_ATTEMPTS):
            mine = LeaseRecord(driver=self._driver, owner=this_process(), until=time.time() + LEASE_SECONDS)
            content = json.dumps(asdict(mine)).encode()
            found = self._read()
            if found is None:
                if self._objects.create(NAME, content):
                    return
                continue
            theirs, tag = found
            if theirs.driver != self._driver and time.time() < theirs.until and not is_dead(theirs.owner):
                break
            if self._objects.replace(NAME, content, tag):
                return
        self._refuse(theirs if found else None)

    def _refuse(self, theirs: LeaseRecord | None) -> None:
        who = "another driver"
        if theirs is not None:
            until = datetime.fromtimestamp(theirs.until, UTC).isoformat(timespec="seconds")
            who = f"the driver {theirs.driver} (process {theirs.owner}), which last said so until {until},"
        raise CacheError(
            f"{self._objects.location}: {who} is working on this cache, and a cache has one driver at a time. Wait for "
            f"it or stop it; if its machine is gone, its lease ends by itself within {LEASE_SECONDS:.0f} seconds: then "
            "run the same command again"
        )

    def _read(self) -> tuple[LeaseRecord, str] | None:
        found = self._objects.read(NAME, _MAX_BYTES)
        if found is None:
            return None
        try:
            return from_json(json.loads(found[0]), LeaseRecord, exact=False), found[1]
        except (ValueError, RecursionError) as error:
            raise CacheError(
                f"{self._objects.location}/{NAME} does not say who is working on the cache ({error}): it was changed. "
                "Remove this one object if nobody is"
            ) from None

    def _renew(self) -> None:
        while not self._stop.wait(LEASE_SECONDS / 4):
            # A server that is away for a while is no reason to stop: the next commit will tell.
            with contextlib.suppress(_Unreachable):
                self._renew_once()

    def _renew_once(self) -> None:
        try:
            found = self._read()
        except CacheError as error:
            raise _Unreachable from error
        if found is not None and found[0].driver != self._driver:
            self._lost = (
                f"{self._objects.location}: another driver ({found[0].driver}) has taken the cache over, because this "
                "one gave no sign of life for longer than its lease; nothing is committed twice"
            )
            self._stop.set()
            return
        try:
            self._take()
        except CacheError as error:
            raise _Unreachable from error


class _Unreachable(Exception):
    """The store did not answer, or somebody else was quicker; looked at again soon."""
