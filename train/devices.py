"""The device to train on, made to give the same bits each time, and not to wait for memory at each step."""

import os

import torch

from cache.device import find_device
from cache.memory import keep_freed_memory


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one; what is asked for by name has to be there (MrrnError)."""
    device = torch.device(find_device(name))
    if device.type == "cuda":
        # cuBLAS gives the same bits each time only with a workspace of a fixed size.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    else:
        keep_freed_memory()
    return device
