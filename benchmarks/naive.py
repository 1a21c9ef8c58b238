"""Extraction by a plain script, which `benchmarks/extract.py` checks our features against and, with --naive, times.

It is the first that one would write, in the manner of video_features: one video at a time, frames by PyAV as PIL
images, torchvision's transform of each, batches of one video alone, fp32 on the CPU, `create_feature_extractor`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import av
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.transforms import v2

from extract.network.preprocess import MEAN, STD
from extract.network.weights import Weights

BATCH = 32

LevelFeatures = Mapping[str, Tensor]
"""Features `[F, C]` of each level of one video, float32."""


def naive_extractor(weights: Weights) -> nn.Module:
    """torchvision's own network, float32."""
    net = models.resnet34(weights=None).eval()
    net.load_state_dict(dict(weights.tensors), strict=False)
    return create_feature_extractor(net, {"layer2": "low", "layer3": "mid", "layer4": "high"})


def naive_features(path: Path, extractor: nn.Module, max_frames: int | None) -> LevelFeatures:
    """Features of one video's first frames, or of all."""
    parts: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for batch_B3HW in _batches(path, max_frames):
            for level, maps in extractor(batch_B3HW).items():
                parts.setdefault(level, []).append(maps.mean((2, 3)))
    return {level: torch.cat(pieces) for level, pieces in parts.items()}


def _batches(path: Path, max_frames: int | None) -> Iterator[Tensor]:
    """Transformed frames, up to 32 at a time."""
    to_float, scaled = v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)
    transform = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor(), to_float, scaled])
    frames: list[Tensor] = []
    with av.open(str(path), metadata_errors="ignore") as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index == max_frames:
                break
            frames.append(transform(frame.to_image()))
            if len(frames) == BATCH:
                yield torch.stack(frames)
                frames = []
    if frames:
        yield torch.stack(frames)
