"""The frozen backbone: torchvision's ResNet up to layer4, BatchNorm folded, channels-last, spatial means of the levels.

Precision: bf16 on a CPU (2.5 times as fast as fp32 where the processor multiplies bf16; fp16 has no fast path there).
fp16 on a GPU: its tensor cores are as fast with either, and fp16 is eight times finer. Activations beyond fp16's range
are noticed, since features that are not finite are refused; --precision bf16 helps then. fp32 is the reference.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from cache.fingerprint import CHANNELS, LEVELS, Level
from extract.network.preprocess import Normalise
from extract.network.weights import Weights

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)

LAYERS: Mapping[Level, str] = {"low": "layer2", "mid": "layer3", "high": "layer4"}


def torch_dtype(precision: Precision) -> "torch.dtype":
    """The number format that the backbone computes with."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def folded_trunk(weights: Weights) -> Any:
    """torchvision's network with `weights`, without its classifier, each BatchNorm folded into its convolution."""
    import torch
    from torchvision import models

    with torch.device("meta"):
        net = getattr(models, weights.backbone)(weights=None)
    net.fc = torch.nn.Identity()
    net.load_state_dict({name: value.clone() for name, value in weights.tensors.items()}, strict=False, assign=True)
    for module in net.modules():  # the counters are still on the meta device; nothing computes with them
        if isinstance(module, torch.nn.BatchNorm2d):
            module.num_batches_tracked = None
    net.eval().requires_grad_(False)
    _fold(net, "conv1", "bn1")
    for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
        for block in layer:
            _fold(block, "conv1", "bn1")
            _fold(block, "conv2", "bn2")
            if block.downsample is not None:
                _fold(block.downsample, "0", "1")
    return net


def _fold(parent: "nn.Module", conv: str, norm: str) -> None:
    import torch
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    setattr(parent, conv, fuse_conv_bn_eval(getattr(parent, conv), getattr(parent, norm)).requires_grad_(False))
    setattr(parent, norm, torch.nn.Identity())


def level_means(net: Any, x_B3HW: "Tensor", levels: Sequence[Level]) -> "Tensor":
    """Spatial means (equation 7) of the levels, side by side: [B, C of all levels] float32.

    Layers above the deepest level asked for are not computed.
    """
    import torch

    x = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(x_B3HW)))))
    means = []
    for level in LEVELS[: LEVELS.index(max(levels, key=LEVELS.index)) + 1]:
        x = getattr(net, LAYERS[level])(x)
        if level in levels:
            means.append(x.mean((2, 3), dtype=torch.float32))
    return torch.cat(means, dim=1)


def split_levels(levels: Sequence[Level]) -> dict[Level, slice]:
    """Which columns of `level_means` belong to each level."""
    starts = [sum(CHANNELS[level] for level in levels[:index]) for index in range(len(levels))]
    return {level: slice(start, start + CHANNELS[level]) for level, start in zip(levels, starts, strict=True)}


def build_forward(
    weights: Weights, *, device: str, precision: Precision, levels: Sequence[Level]
) -> "Callable[[Tensor], Tensor]":
    """The function crops [B, 224, 224, 3] uint8 -> features [B, C of all levels] float16 on `device`.

    Values beyond float16's range come out as infinities: the caller has to check.
    """
    import torch

    dtype = torch_dtype(precision)
    net = folded_trunk(weights).to(device, dtype).to(memory_format=torch.channels_last)
    normalise = Normalise(device, dtype)

    def forward(rows_BHW3: "Tensor") -> "Tensor":
        with torch.inference_mode():
            return level_means(net, normalise(rows_BHW3), levels).to(torch.float16)

    return forward
