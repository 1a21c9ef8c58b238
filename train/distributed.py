"""The device to train on, made to give the same bits each time, and not to wait for memory at each step.

Several processes that train one head together, started by torchrun: each takes its share of every batch.

Every process has the same weights and takes the same steps, because gradients and loss are added up before each update.
Dropout masks are drawn by each process for its own clips: without dropout the result is that of one process up to
rounding, with it the masks are others of the same distribution.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from cache.common.device import find_device, keep_freed_memory
from cache.common.errors import TrainingError


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one; what is asked for by name has to be there (MrrnError)."""
    device = torch.device(find_device(name))
    if device.type == "cuda":
        # cuBLAS gives the same bits each time only with a workspace of a fixed size.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    else:
        keep_freed_memory()
    return device


@dataclass(frozen=True)
class Group:
    """This process's place among those that train together; a single process is a group of one."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and says how it goes."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """This process's clips of a batch."""
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
        """The tensor of every process, in the order of their ranks."""
        if self.size == 1:
            return [tensor]
        found = [torch.empty_like(tensor) for _ in range(self.size)]
        distributed.all_gather(found, tensor)
        return found

    def as_leader_says(self, flag: bool, device: torch.device) -> bool:
        """The leader's flag, in every process."""
        if self.size == 1:
            return flag
        told = torch.tensor(int(flag), device=device)
        distributed.broadcast(told, src=0)
        return bool(told)

    def wait(self) -> None:
        """Go on when all processes have come here."""
        if self.size > 1:
            distributed.barrier()


def join(device: torch.device) -> tuple[Group, torch.device]:
    """Meet the processes that torchrun started, and the device that is this one's. Alone without torchrun."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Group(), device
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
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Group(distributed.get_rank(), distributed.get_world_size()), device
