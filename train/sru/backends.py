"""Which implementation of the SRU's recurrence runs: by name or by device, never exchanged for another in silence."""

import torch

from cache.common.errors import TrainingError
from train.sru import cpu, reference
from train.sru.operator import Recurrence

BACKENDS = ("auto", "reference", "cpu", "triton")


def recurrence(backend: str, device: torch.device) -> Recurrence:
    """The implementation called `backend` for tensors on `device`; "auto" is "cpu" on a processor, "triton" on a GPU.

    A graph that is being exported gets the reference when the backend is "auto": it consists of standard operations.
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
