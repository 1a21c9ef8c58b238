"""The machine's resources: the device that computes, the memory that is available, and malloc's use of it."""

import ctypes
import platform
import re
from pathlib import Path

from cache.common.errors import MrrnError


def find_device(asked: str) -> str:
    """Returns the device `asked` for; for "auto", CUDA if there is one, else the CPU. Never falls back silently.

    Raises `MrrnError` if this machine does not have it.
    """
    import torch  # here, because the rest of this package works without it

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
    """Make glibc's malloc keep freed memory instead of returning it to the kernel.

    By default it returns freed memory beyond some ten megabytes, and maps each large block anew. That costs 37,000 page
    faults for a batch of the extraction's network on a processor, a tenth of its time; and a twentieth of a training
    step's. Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def available_bytes() -> int:
    """Bytes of memory available without swapping, within the container's limit; 2^62 if the system does not tell."""
    machine = _fields(Path("/proc/meminfo")).get("MemAvailable:")
    limits = [1 << 62 if machine is None else machine * 1024]
    limit, used = (_text(_CONTAINER / name).strip() for name in ("memory.max", "memory.current"))
    if limit.isdigit() and used.isdigit():
        # Cached file pages count as used, but are freed on demand.
        cached = _fields(_CONTAINER / "memory.stat")
        limits.append(int(limit) - int(used) + cached.get("file", 0) - cached.get("shmem", 0))
    return max(0, min(limits))


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _fields(file: Path) -> dict[str, int]:
    """The lines `name number ...` of a kernel file, as a dictionary."""
    lines = [line.split() for line in _text(file).splitlines()]
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdigit()}
