"""The frozen backbone on its device: BatchNorm folded, channels-last, read at three depths, averaged over the picture.

Precision: bf16 on a CPU (2.5 times as fast as fp32 where the processor multiplies bf16; fp16 has no fast path there).
fp16 on a GPU: its tensor cores are as fast with either, and fp16 is eight times finer. Activations beyond fp16's range
are noticed, since features that are not finite are refused; --precision bf16 helps then. fp32 is the reference.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from cache.fingerprint import Level
from extract.network.architecture import Depth, architecture, build, choose_depths
from extract.network.preprocess import Normalise
from extract.network.weights import Weights

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)


def torch_dtype(precision: Precision) -> "torch.dtype":
    """The number format that the backbone computes with."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def folded_trunk(weights: Weights) -> Any:
    """The library's network with `weights`, without its classifier, each BatchNorm folded where it can be."""
    import torch
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    found = architecture(weights.backbone, weights.preprocess.crop)
    net = _loaded(weights, found.classifier, "meta")
    if any(each.is_meta for each in chain(net.parameters(), net.buffers())):
        net = _loaded(weights, found.classifier, "cpu")  # it computes some tensors that no file has
    for conv, norm in found.folds:
        inner = net.get_submodule(norm)
        net.set_submodule(conv, fuse_conv_bn_eval(net.get_submodule(conv), inner).requires_grad_(False))
        # timm's BatchNorms hold the activation that follows them.
        rest = [inner.get_submodule(name) for name in ("drop", "act") if hasattr(inner, name)]
        net.set_submodule(norm, torch.nn.Sequential(*rest) if rest else torch.nn.Identity())
    return net


def _loaded(weights: Weights, classifier: str | None, device: str) -> Any:
    import torch

    net = build(weights.backbone, weights.preprocess.crop, device)
    if classifier:
        net.set_submodule(classifier, torch.nn.Identity())
    net.load_state_dict({name: value.clone() for name, value in weights.tensors.items()}, strict=False, assign=True)
    for module in net.modules():  # the counters may be on the meta device; nothing computes with them
        if isinstance(module, torch.nn.BatchNorm2d):
            module.num_batches_tracked = None
    return net.requires_grad_(False)


class _Reached(Exception):
    """The deepest depth asked for is computed; what lies above it is not needed."""


class DepthReader:
    """Runs a network up to the deepest of some depths: pictures [B, 3, h, w] -> means [B, C of all] float32."""

    def __init__(self, net: "nn.Module", depths: Sequence[Depth]) -> None:
        self.net, self._depths = net, depths
        self._means: dict[str, Tensor] = {}
        for depth in depths:
            net.get_submodule(depth.name).register_forward_hook(self._keeper(depth))

    def _keeper(self, depth: Depth) -> "Callable[[nn.Module, Any, Tensor], None]":
        import torch

        def keep(_module: "nn.Module", _inputs: Any, output: "Tensor") -> None:
            wanted = output[:, depth.skipped :] if depth.skipped else output
            self._means[depth.name] = wanted.mean(depth.axes, dtype=torch.float32)  # equation 7
            if depth is self._depths[-1]:
                raise _Reached

        return keep

    def __call__(self, x_B3HW: "Tensor") -> "Tensor":
        """The means of the depths side by side."""
        import torch

        try:
            self.net(x_B3HW)
        except _Reached:
            return torch.cat([self._means.pop(depth.name) for depth in self._depths], dim=1)
        raise AssertionError("the network ended before its deepest depth")


def columns_of(weights: Weights, levels: Sequence[Level], depths: Sequence[str] = ()) -> dict[Level, slice]:
    """Which columns of the features belong to each of `levels`."""
    chosen = choose_depths(weights.backbone, weights.preprocess.crop, depths)
    ends = list(accumulate(chosen[level].width for level in levels))
    return {level: slice(end - chosen[level].width, end) for level, end in zip(levels, ends, strict=True)}


def read_levels(
    weights: Weights, *, device: str, dtype: "torch.dtype", levels: Sequence[Level], depths: Sequence[str] = ()
) -> DepthReader:
    """The folded network on `device`, channels-last, read at the depths of `levels`."""
    import torch

    net = folded_trunk(weights).to(device, dtype).to(memory_format=torch.channels_last)
    chosen = choose_depths(weights.backbone, weights.preprocess.crop, depths)
    return DepthReader(net, [chosen[level] for level in levels])


def build_forward(
    weights: Weights, *, device: str, precision: Precision, levels: Sequence[Level], depths: Sequence[str] = ()
) -> "Callable[[Tensor], Tensor]":
    """The function crops [B, h, w, 3] uint8 -> features [B, C of all levels] float16 on `device`.

    Values beyond float16's range come out as infinities: the caller has to check.
    """
    import torch

    dtype = torch_dtype(precision)
    means = read_levels(weights, device=device, dtype=dtype, levels=levels, depths=depths)
    normalise = Normalise(device, dtype, weights.preprocess)

    def forward(rows_BHW3: "Tensor") -> "Tensor":
        with torch.inference_mode():
            return means(normalise(rows_BHW3)).to(torch.float16)

    return forward
