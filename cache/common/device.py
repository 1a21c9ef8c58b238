"""Which device computes: what was asked for has to be there, and nothing else is taken in silence.

How much memory there is to use, and keeping what was used once.
"""

import ctypes
import platform
import re
from pathlib import Path

from cache.common.errors import MrrnError


def find_device(asked: str) -> str:
    """`asked` itself, or for "auto" CUDA where there is one, else the CPU; MrrnError where this machine lacks it."""
    import torch  # here: nothing else in this folder needs it

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cpu":
        return asked
    known = re.fullmatch("cuda(:([0-9]+))?", asked)
    if known is None:
        raise MrrnError(f"device {asked!r} is not known; choose auto, cpu, cuda or cuda:INDEX (DEVICE=, --device)")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(known[2] or 0) >= count:
        raise MrrnError(
            f"device {asked!r} was asked for, but this machine has {count or 'no'} CUDA devices that PyTorch can use; "
            "choose another with DEVICE= (--device), for example cpu"
        )
    return asked


_CONTAINER = Path("/sys/fs/cgroup")

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt (malloc.h)."""

_KEPT_BYTES = 1 << 30
"""Freed memory that a process keeps for later, at most."""


def keep_freed_memory() -> None:
    """Have malloc keep what is freed for what comes next, so that nobody asks the kernel for it page by page again.

    By default glibc gives freed memory back beyond some ten megabytes, and takes each large block anew. That is 37,000
    page faults for a batch of the extraction's network on a processor, a tenth of its time; and a twentieth of a
    training step's. Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def available_bytes() -> int:
    """Memory that can be had without swapping, within the container's limit; huge where the system does not tell."""
    machine = _fields(Path("/proc/meminfo")).get("MemAvailable:")
    limits = [1 << 62 if machine is None else machine * 1024]
    limit, used = _number(_CONTAINER / "memory.max"), _number(_CONTAINER / "memory.current")
    if limit is not None and used is not None:
        # What files left in memory counts as used, and is given up when memory is asked for.
        cached = _fields(_CONTAINER / "memory.stat")
        limits.append(limit - used + cached.get("file", 0) - cached.get("shmem", 0))
    return max(0, min(limits))


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _fields(file: Path) -> dict[str, int]:
    """The lines `name number ...` of a file of the kernel's."""
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdigit()}
