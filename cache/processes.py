"""Names of processes, from which others can later tell whether they still run, and leases that nobody renews.

No clock that can be set decides here: a lease counts as given up once this process has watched it for long enough.
"""

import ctypes
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import xxhash

_OWNER = re.compile(
    r"(?P<host>.+?)(?:-(?P<machine>[0-9a-f]{16})-(?P<boot>[0-9a-f]{16}))?"
    r"-(?P<kernel>[0-9a-f]{16})-(?P<pid>\d+)-(?P<started>\d+)"
)
"""Names of an earlier version have neither machine nor boot."""
_UNKNOWN = "0" * 16
_PR_SET_PDEATHSIG = 1


def this_process() -> str:
    """Returns a unique name of the calling process: host, machine, boot, process-id namespace, process id, start."""
    return f"{_host()}-{_machine()}-{_boot()}-{_kernel()}-{os.getpid()}-{_started(os.getpid()) or 0}"


def is_dead(owner: str) -> bool:
    """Whether the process `owner` is known to have ended; False if that cannot be known, as on another machine."""
    return _runs(owner) is False


def is_alive(owner: str) -> bool:
    """Whether the process `owner` is known to run, on this machine."""
    return _runs(owner) is True


def host_and_pid(owner: str) -> str:
    """Where the process `owner` runs, as text for the user."""
    parts = _OWNER.fullmatch(owner)
    return f"process {parts['pid']} on {parts['host']}" if parts else owner


def _runs(owner: str) -> bool | None:
    """None if it cannot be known."""
    parts = _OWNER.fullmatch(owner)
    try:
        if not parts or parts["host"] != _host():
            return None
        if parts["kernel"] == _kernel():
            return _started(int(parts["pid"])) == int(parts["started"])
        same_machine = parts["machine"] not in (None, _UNKNOWN) and parts["machine"] == _machine()
        return False if same_machine and parts["boot"] != _boot() else None
    except OSError:  # such as no open file left: this tells nothing about the process
        return None


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname())[:64] or "host"


@cache
def _machine() -> str:
    """Hex for this machine; zeros if it has no identity of its own, as most containers."""
    identity = (_read(Path("/etc/machine-id")) or b"").strip()
    return xxhash.xxh3_64_hexdigest(identity) if re.fullmatch(rb"[0-9a-f]{32}", identity) else _UNKNOWN


@cache
def _boot() -> str:
    """Hex for the running kernel, until the machine is started anew."""
    return xxhash.xxh3_64_hexdigest(_boot_id())


@cache
def _kernel() -> str:
    """Hex for the running kernel and the process-id namespace, within which process ids are unique."""
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except FileNotFoundError:
        namespace = ""
    return xxhash.xxh3_64_hexdigest(_boot_id() + namespace.encode())


def _boot_id() -> bytes:
    return _read(Path("/proc/sys/kernel/random/boot_id")) or b""


def _started(pid: int) -> int | None:
    """Start time of a running process in clock ticks since boot (0 if the system does not tell); None if it ended."""
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return 0
    stat = _read(Path(f"/proc/{pid}/stat"))
    if stat is None:
        return None
    # The command name, in brackets, may contain blanks and brackets.
    state, *fields = stat[stat.rindex(b")") + 2 :].split()
    return None if state in (b"Z", b"X") else int(fields[18])


def _read(path: Path) -> bytes | None:
    """The file's content; None if there is no such file, or its process has ended. Raises other `OSError`s."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None


def end_with(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends; `parent` is that thread's process.

    Ends this process at once if that has happened already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


class _Watched(NamedTuple):
    mark: float
    seconds: float
    """For which `mark` was seen unchanged."""
    looked: float
    """When it was last looked at, by `time.monotonic`."""


class LeaseWatch:
    """Tells which leases nobody renews, from what this process has seen itself. Not safe for several threads."""

    def __init__(self) -> None:
        self._watched: dict[int, _Watched] = {}

    def lapsed(self, leases: Mapping[int, float], seconds: float) -> set[int]:
        """Keys of those of `leases`, all there are now, that were seen unchanged for `seconds`.

        `leases`: by key, what a renewal changes. Between two looks at most half of `seconds` counts: while this process
        or the machine paused, so may the others have.
        """
        now = time.monotonic()
        seen = {}
        for key, mark in leases.items():
            before = self._watched.get(key)
            same = before is not None and before.mark == mark
            more = before.seconds + min(now - before.looked, seconds / 2) if before and same else 0.0
            seen[key] = _Watched(mark, more, now)
        self._watched = seen
        return {key for key, watched in seen.items() if watched.seconds >= seconds}


def stays_same(read: Callable[[], object], seconds: float, poll_seconds: float = 1.0) -> bool:
    """Whether `read()` returns the same for `seconds`; returns as soon as it does not."""
    first, waited = read(), 0.0
    while waited < seconds:
        time.sleep(poll_seconds)
        waited += poll_seconds
        if read() != first:
            return False
    return True
