"""Looking at processes through /proc."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def children(parent: int | None = None) -> list[int]:
    """Process ids of the living children of `parent`, by default of this process."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent_text = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent_text) == (parent or os.getpid()) and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


def alive(pid: int) -> bool:
    """Whether a process exists and is not just a remembered exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def open_descriptors(pid: int | None = None) -> int:
    """How many descriptors a process holds."""
    return len(list(Path(f"/proc/{pid or os.getpid()}/fd").iterdir()))


def resident_bytes(pid: int | None = None) -> int:
    """Memory of a process that is its own: without what it shares with files and other processes."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid or os.getpid()}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) * 1024
    return 0  # it is ending


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for something to become true; AssertionError when it does not."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
