"""The device to train on, and making it give the same bits each time."""

import os

import torch

from cache.errors import TrainingError


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one; what is asked for by name has to be there (TrainingError)."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise TrainingError(f"device {name!r} is unknown; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise TrainingError(f"device {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if not torch.cuda.is_available() or (device.index or 0) >= count:
            raise TrainingError(f"device {name!r} was asked for; this machine has {count} CUDA devices: use cpu")
        # cuBLAS gives the same bits each time only with a workspace of a fixed size.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return device
