"""The device to train on, made to give the same bits each time, and not to wait for memory at each step."""

import ctypes
import os
import platform

import torch

from cache.device import find_device

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt (malloc.h)."""

KEPT_BYTES = 1 << 30
"""Memory that a step has freed is kept for the next one up to this much."""

_LARGEST_FROM_KEPT = 32 << 20
"""Bytes above which glibc takes each piece of memory from the system, whatever is asked of it."""


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one; what is asked for by name has to be there (MrrnError)."""
    device = torch.device(find_device(name))
    if device.type == "cuda":
        # cuBLAS gives the same bits each time only with a workspace of a fixed size.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    else:
        _keep_freed_memory()
    return device


def _keep_freed_memory() -> None:
    """Have malloc keep what a step frees, so that the next step does not ask the system for it page by page.

    By default glibc gives freed memory back beyond some ten megabytes, and a step of 3 x 1024 units in bf16 then spends
    a twentieth of its time on page faults. Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_FROM_KEPT)
        libc.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
