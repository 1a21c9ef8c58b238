"""What follows from the device where nothing else was said: precision, batch, decoders, claims, shards."""

import os
import platform

from cache.common.device import find_device
from extract.request import Request
from extract.settings import ExtractSettings, Precision

CPU_BATCH = 32
GPU_BATCH = 256
CPU_VIDEOS_PER_CLAIM = 16
GPU_VIDEOS_PER_CLAIM = 128
CPU_SHARD_ROWS = 1_500
GPU_SHARD_ROWS = 150_000


def resolve(request: Request, device: str, jobs: int | None) -> ExtractSettings:
    """The settings with everything decided, for a `device` that is there."""
    on_gpu = device.startswith("cuda")
    return request.settings(
        device=device,
        precision=request.values["precision"] or default_precision(device),
        batch_frames=request.values["batch_frames"] or (GPU_BATCH if on_gpu else CPU_BATCH),
        jobs=jobs or default_jobs(device),
    )


def find_devices(asked: str) -> tuple[str, ...]:
    """Each of "cuda:0,cuda:1", all of them there; MrrnError where one is missing."""
    return tuple(find_device(device.strip()) for device in asked.split(","))


def default_precision(device: str) -> Precision:
    """fp16 on a GPU, bf16 on a CPU that computes with it, else fp32; `extract.network.backbones` says why."""
    if device.startswith("cuda"):
        return "fp16"
    return "bf16" if _multiplies_bf16() else "fp32"


def _multiplies_bf16() -> bool:
    """Whether the processor has instructions for bf16 products.

    oneDNN also calls bf16 supported where AVX-512 has to emulate it, at a fifth of fp32's rate.
    """
    import torch

    supported = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return supported and (platform.machine() != "x86_64" or torch.cpu._is_avx512_bf16_supported())


def default_jobs(device: str) -> int:
    """Decoders at once. A core decodes some fifty times what it can push through the network, so on a CPU few will do;
    a GPU keeps every core busy."""
    cores = len(os.sched_getaffinity(0))
    return cores if device.startswith("cuda") else max(1, min(4, cores // 2))


def videos_per_claim(device: str) -> int:
    """Videos taken from the ledger at once: about a minute's work on a CPU, some seconds' on a GPU."""
    return GPU_VIDEOS_PER_CLAIM if device.startswith("cuda") else CPU_VIDEOS_PER_CLAIM


def shard_rows(device: str) -> int:
    """Rows (views of frames) after which a shard is committed: half a minute's work on two cores, which is what a kill
    costs there; on a GPU, where that is little, 256 MiB of features, for few files."""
    return GPU_SHARD_ROWS if device.startswith("cuda") else CPU_SHARD_ROWS
