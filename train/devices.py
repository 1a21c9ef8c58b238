"""The device to train on, and making it give the same bits each time."""

import os

import torch

from cache.device import find_device


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one; what is asked for by name has to be there (MrrnError)."""
    device = torch.device(find_device(name))
    if device.type == "cuda":
        # cuBLAS gives the same bits each time only with a workspace of a fixed size.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return device
