"""Where training runs: the device, made deterministic, and the processes that torchrun started to train one head.

Every process has the same weights and takes its share of each batch. Gradients and loss are added up over all processes
before each update. Each process draws the dropout masks of its own clips: without dropout the result equals that of a
single process up to rounding; with dropout the masks differ, and their distribution is the same.
"""

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from cache.common.device import choose_kernels, find_device, keep_freed_memory
from cache.common.errors import TrainingError


def choose_device(name: str) -> torch.device:
    """Returns the device called `name`; `auto` is the GPU if there is one. Raises `MrrnError` if it is missing."""
    device = torch.device(find_device(name))
    if device.type == "cuda":
        # cuBLAS gives the same bits each time only if its workspace has a fixed size.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        choose_kernels()
    else:
        keep_freed_memory()
    return device


@dataclass(frozen=True)
class ProcessGroup:
    """The place of this process among those that train together. A single process is a group of one."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes files and reports progress."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """Returns this process's clips of a batch."""
        return batch[self.rank :: self.size] if self.size > 1 else batch

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, in one exchange."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        distributed.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Returns the tensor of every process, in the order of ranks."""
        if self.size == 1:
            return [tensor]
        found = [torch.empty_like(tensor) for _ in range(self.size)]
        distributed.all_gather(found, tensor)
        return found

    def as_leader_says(self, flag: bool, device: torch.device) -> bool:
        """Returns the leader's flag in every process."""
        if self.size == 1:
            return flag
        told = torch.tensor(int(flag), device=device)
        distributed.broadcast(told, src=0)
        return bool(told)

    def wait(self) -> None:
        """Wait until all processes have come here."""
        if self.size > 1:
            distributed.barrier()


SINGLE = ProcessGroup()
"""The group of a process that trains by itself."""


def join(device: torch.device) -> tuple[ProcessGroup, torch.device]:
    """Join the processes that torchrun started, if it did. Returns the group and the device of this process."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return SINGLE, device
    if device.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise TrainingError(
                f"torchrun started more processes on this machine than its {torch.cuda.device_count()} CUDA devices; "
                "start one for each (--nproc-per-node)"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if not distributed.is_initialized():
        # Imported later, by an optimizer, its functions' default arguments would hold the group beyond its destruction.
        from torch.distributed.nn import functional  # noqa: F401

        on_gpu = device.type == "cuda"
        # NCCL's barrier would have to guess a device that is not named here.
        distributed.init_process_group("nccl" if on_gpu else "gloo", device_id=device if on_gpu else None)
        # A process that exits with the group's threads alive can abort when one of them frees a tensor; torchrun then
        # counts its work as failed.
        atexit.register(distributed.destroy_process_group)
    return ProcessGroup(distributed.get_rank(), distributed.get_world_size()), device
