"""Which device, and what follows from it where nothing else was said: precision, batch, decoders, claims."""

import os

from cache.errors import MrrnError
from extract.request import Request
from extract.settings import ExtractSettings, Precision

CPU_BATCH = 32
GPU_BATCH = 256
CPU_VIDEOS_PER_CLAIM = 16
GPU_VIDEOS_PER_CLAIM = 128


def resolve(request: Request, device: str, jobs: int | None) -> ExtractSettings:
    """The settings with everything decided, for a `device` that is there."""
    on_gpu = device.startswith("cuda")
    return request.settings(
        device=device,
        precision=request.values["precision"] or default_precision(device),
        batch_frames=request.values["batch_frames"] or (GPU_BATCH if on_gpu else CPU_BATCH),
        jobs=jobs or default_jobs(device),
    )


def find_device(asked: str) -> str:
    """`asked`, or for "auto" CUDA where there is one, else the CPU."""
    import torch

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    require_device(asked)
    return asked


def find_devices(asked: str) -> tuple[str, ...]:
    """Each of "cuda:0,cuda:1", all of them there; MrrnError where one is missing."""
    return tuple(find_device(device.strip()) for device in asked.split(","))


def require_device(device: str) -> None:
    """MrrnError where `device` is not one that this machine has."""
    import torch

    if device == "cpu":
        return
    kind, _, index = device.partition(":")
    if kind != "cuda" or not (index or "0").isdecimal():
        raise MrrnError(f"device {device!r} is not known; choose auto, cpu, cuda or cuda:INDEX (DEVICE=, --device)")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= count:
        raise MrrnError(
            f"device {device!r} was asked for, but this machine has {count or 'no'} CUDA devices that PyTorch can use; "
            "choose another with DEVICE= (--device), for example cpu"
        )


def default_precision(device: str) -> Precision:
    """fp16 on a GPU, bf16 on a CPU that computes with it, else fp32; `extract.backbone` says why."""
    import torch

    if device.startswith("cuda"):
        return "fp16"
    return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"


def default_jobs(device: str) -> int:
    """Decoders at once. A core decodes some fifty times what it can push through the network, so on a CPU few will do;
    a GPU keeps every core busy."""
    cores = len(os.sched_getaffinity(0))
    return cores if device.startswith("cuda") else max(1, min(4, cores // 2))


def videos_per_claim(device: str) -> int:
    """Videos taken from the ledger at once: about a minute's work on a CPU, some seconds' on a GPU."""
    return GPU_VIDEOS_PER_CLAIM if device.startswith("cuda") else CPU_VIDEOS_PER_CLAIM
