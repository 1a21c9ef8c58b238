"""Chooses the implementation of the SRU's recurrence, by name or by device. There is no silent fallback."""

import torch

from cache.common.errors import TrainingError
from train.sru import cpu, reference
from train.sru.operator import Recurrence

BACKENDS = ("auto", "reference", "cpu", "triton")


def recurrence(backend: str, device: torch.device) -> Recurrence:
    """Returns the implementation called `backend`; "auto" is "cpu" on a processor and "triton" on a GPU.

    While a graph is exported, "auto" is the reference, which consists of standard operations. Raises `TrainingError` if
    the implementation cannot run on `device`.
    """
    name = _automatic(device) if backend == "auto" else backend
    if name == "reference":
        return reference.recurrence
    if name == "cpu":
        if device.type != "cpu":
            raise TrainingError(
                f"the SRU backend 'cpu' got tensors on {device}: move them, or choose 'triton' or 'auto'"
            )
        return cpu.recurrence
    return _triton(device)


def _automatic(device: torch.device) -> str:
    if torch.compiler.is_exporting():
        return "reference"
    names = {"cpu": "cpu", "cuda": "triton"}
    if device.type not in names:
        raise TrainingError(
            f"no SRU kernel for {device}: use a CPU or a CUDA device, or choose the backend 'reference'"
        )
    return names[device.type]


def _triton(device: torch.device) -> Recurrence:
    try:
        from train.sru import triton  # only here, so that nothing else needs Triton
    except ImportError as error:
        raise TrainingError(
            f"the SRU backend 'triton' needs the package triton, which cannot be imported ({error}): "
            "install it (pip install triton), or choose the backend 'reference'"
        ) from error
    if device.type != "cuda" and not triton.INTERPRETED:
        raise TrainingError(
            f"the SRU backend 'triton' got tensors on {device} and needs a CUDA device: "
            "move them, choose 'auto', or set TRITON_INTERPRET=1 before starting to check the kernels without one"
        )
    return triton.recurrence
