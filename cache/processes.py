"""Names of processes, from which other processes can later tell whether they still run."""

import os
import re
import socket
from functools import cache
from pathlib import Path

import xxhash

_OWNER = re.compile(r"(?P<machine>.+)-(?P<kernel>[0-9a-f]{16})-(?P<pid>\d+)-(?P<started>\d+)")


def this_process() -> str:
    """Returns a unique name of the calling process: host, kernel, process id, start time."""
    return f"{_host()}-{_kernel()}-{os.getpid()}-{_started(os.getpid()) or 0}"


def is_dead(owner: str) -> bool:
    """Whether the process `owner` is known to have ended; False if that cannot be known, as on another machine."""
    parts = _OWNER.fullmatch(owner)
    if not parts or parts["kernel"] != _kernel() or parts["machine"] != _host():
        return False
    return _started(int(parts["pid"])) != int(parts["started"])


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname())[:64] or "host"


@cache
def _kernel() -> str:
    """Hex for the running kernel and the process-id namespace, within which process ids are unique."""
    boot = _read(Path("/proc/sys/kernel/random/boot_id")) or b""
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = ""
    return xxhash.xxh3_64_hexdigest(boot + namespace.encode())


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
    try:
        return path.read_bytes()
    except OSError:
        return None
