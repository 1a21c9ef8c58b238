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
    _check_name(asked)
    import torch  # here, because the rest of this package works without it

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(asked[5:] or 0) >= count:
            raise _missing(asked, count)
    return asked


def check_device(asked: str) -> None:
    """A first look at one device or several ("cuda:0,cuda:1"), without torch, which has the last word.

    Raises `MrrnError` if a name is not known, or if a GPU was asked for and nothing of its driver is here.
    """
    for name in map(str.strip, asked.split(",")):
        _check_name(name)
        if name.startswith("cuda") and not _driver_here():
            raise _missing(name, 0)


def _check_name(name: str) -> None:
    if not re.fullmatch("auto|cpu|cuda(:[0-9]+)?", name):
        raise MrrnError(f"device {name!r} is not known; choose auto, cpu, cuda or cuda:INDEX (DEVICE=, --device)")


def _missing(asked: str, count: int) -> MrrnError:
    return MrrnError(
        f"device {asked!r} was asked for, but this machine has {count or 'no'} CUDA devices that PyTorch can use; "
        "choose another with DEVICE= (--device), for example cpu"
    )


def _driver_here() -> bool:
    """Whether a GPU may be here: NVIDIA's or AMD's device files, or NVIDIA's library. True where that says nothing."""
    if platform.system() != "Linux" or any(path.exists() for path in map(Path, ("/dev/dxg", "/dev/kfd"))):
        return True
    try:
        found = [*Path("/dev").glob("nvidia*"), *Path("/dev").glob("nvhost*"), *Path("/dev").glob("nvgpu*")]
        return bool(found) or ctypes.CDLL("libcuda.so.1") is not None
    except OSError:
        return False


def multiplies_bf16(device: str) -> bool:
    """Whether `device` ("cpu", "cuda" or "cuda:INDEX", which is here) multiplies bfloat16 in hardware."""
    import torch

    if device.startswith("cuda"):
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
        return supported and torch.cuda.get_device_capability(device) >= (8, 0)
    # oneDNN also calls bf16 supported where AVX-512 has to emulate it, at a fifth of fp32's rate.
    emulated = platform.machine() == "x86_64" and not torch.cpu._is_avx512_bf16_supported()
    return torch.ops.mkldnn._is_mkldnn_bf16_supported() and not emulated


def choose_kernels() -> None:
    """Deterministic kernels on GPUs, chosen by cuDNN's rules rather than by timing, and no TF32 under the name of fp32.

    Timing picks different kernels in different runs, whose last bits differ: a continued run would give other numbers.
    """
    import torch

    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


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
