"""Chooses the implementation of the SRU's recurrence, by name or by device. There is no silent fallback."""

import torch

from cache.common.errors import TrainingError
from train.sru import reference
from train.sru.operator import Recurrence

BACKENDS = ("auto", "reference", "cpu", "triton")


def recurrence(backend: str, device: torch.device) -> Recurrence:
    """Returns the implementation called `backend`; "auto" is "cpu" on a processor and "triton" on a GPU.

    While a graph is exported, "auto" is the reference, which consists of standard operations. Raises `TrainingError` if
    the implementation cannot run on `device`.
    """
    if backend == "auto":
        if torch.compiler.is_exporting():
            backend = "reference"
        elif device.type in ("cpu", "cuda"):
            backend = "cpu" if device.type == "cpu" else "triton"
        else:
            raise TrainingError(
                f"no SRU kernel for {device}: use a CPU or a CUDA device, or choose the backend 'reference'"
            )
    if backend == "reference":
        return reference.recurrence
    if backend == "triton":
        return _triton(device)
    if device.type != "cpu":
        raise TrainingError(f"the SRU backend 'cpu' got tensors on {device}: move them, or choose 'triton' or 'auto'")
    from train.sru import cpu  # only here, so that nothing else needs llvmlite

    return cpu.recurrence


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
