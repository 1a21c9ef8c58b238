"""How much memory there is to use."""

from pathlib import Path

_CONTAINER = Path("/sys/fs/cgroup")


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
