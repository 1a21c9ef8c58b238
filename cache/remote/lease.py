"""The lease of a cache in an object store: one driver at a time extends the cache.

The lease keeps a second driver from starting. Neither it nor clocks decide what is committed: the log does, which takes
one record for each position. A lease that has ended, or ends later than any lease of ours, may only look so because a
clock was set: before it is taken over, it is watched for a while, in which a living driver would have renewed it.
"""

import contextlib
import json
import threading
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Final

import click

from cache.common.errors import CacheError
from cache.common.files import from_json
from cache.ledger import LEASE_SECONDS, WATCH_SECONDS, HeldLease
from cache.processes import host_and_pid, is_dead, stays_same, this_process
from cache.remote.client import Objects

NAME: Final = "driver.json"
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
    """Unix time in seconds, by the driver's clock; 0 if the lease was broken."""


class DriverLease:
    """This working copy's right to extend the cache. A thread renews it from the first `hold` until `release`."""

    def __init__(self, objects: Objects, driver: str) -> None:
        self._objects, self._driver = objects, driver
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._renewer: threading.Thread | None = None
        self._lost = ""

    def hold(self) -> None:
        """Take the lease unless it is ours already. Raises `CacheError` naming the driver that has it."""
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
        """Stop renewing. If `for_all`, remove the lease; otherwise other processes of this working copy go on."""
        with self._lock:
            if self._renewer is None:
                return
            self._stop.set()
            self._renewer.join()
            self._renewer = None
            # If the store does not answer, the lease lapses by itself.
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
            if theirs.driver != self._driver and not self._given_up(theirs):
                break
            if self._objects.replace(NAME, content, tag):
                return
        who = "another driver"
        if found is not None:
            until = datetime.fromtimestamp(theirs.until, UTC).isoformat(timespec="seconds")
            who = f"the driver {theirs.driver} ({host_and_pid(theirs.owner)}), which last said so until {until},"
        raise CacheError(
            f"{self._objects.location}: {who} is working on this cache, and a cache has one driver at a time. Wait for "
            f"it or stop it; if its machine is gone, its lease ends by itself within {LEASE_SECONDS:.0f} seconds: then "
            "run the same command again"
        )

    def _given_up(self, theirs: LeaseRecord) -> bool:
        """Whether nobody renews another driver's lease; may watch it for a while."""
        if not theirs.until or is_dead(theirs.owner):
            return True
        if 0.0 < theirs.until - time.time() <= 2 * LEASE_SECONDS:
            return False
        click.echo(
            f"{self._objects.location}: looking for {WATCH_SECONDS:.0f} seconds whether the driver {theirs.driver} "
            f"({host_and_pid(theirs.owner)}) still renews its lease",
            err=True,
        )
        return stays_same(self._read, WATCH_SECONDS)

    def held_by(self) -> HeldLease | None:
        """Who has the lease now; None if nobody has."""
        found = self._read()
        if found is None or not found[0].until:
            return None
        return HeldLease(owner=found[0].owner, token=0, expires=found[0].until, num_videos=0)

    def end(self, held: HeldLease) -> None:
        """End the lease of another driver, which learns of it when it renews or commits."""
        found = self._read()
        if found is not None and found[0].owner == held.owner:
            broken = LeaseRecord(driver=f"nobody, since {this_process()} broke the lease", owner=held.owner, until=0.0)
            self._objects.replace(NAME, json.dumps(asdict(broken)).encode(), found[1])

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
            # A store that does not answer for a while is no reason to stop: the next commit will tell.
            with contextlib.suppress(CacheError):
                found = self._read()
                if found is not None and found[0].driver != self._driver:
                    self._lost = (
                        f"{self._objects.location}: another driver ({found[0].driver}) has taken the cache over, "
                        "because this one did not renew its lease in time; nothing is committed twice"
                    )
                    return
                self._take()
