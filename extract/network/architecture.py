"""What can be known of a backbone without its weights: its tensors, the depths it can be read at, its foldable layers.

No architecture is known by name. The network is built and run once on torch's meta device, which computes shapes and no
numbers, and each module's output is watched:

    stride   maps [1, C, h, w] or [1, h, w, C]: the last module with each map size is the end of a stage
    tokens   [1, N, C]: a transformer's blocks are the most numerous modules of one kind in one place
    folding  a BatchNorm can go into the convolution before it if nothing else reads that one's output
"""

import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cache.common.errors import MrrnError
from cache.common.text import some
from cache.fingerprint import LEVELS, Level

if TYPE_CHECKING:
    from torch import nn

TIMM: Final = "timm:"

PACKAGED: Final = {"efficientnet-lite0": "timm:tf_efficientnet_lite0"}
"""Backbones whose weights are a package of their own (`mrrn[offline]`), and the networks that they are."""


@dataclass(frozen=True)
class Depth:
    """A module whose output can be averaged to features."""

    name: str
    width: int
    """C."""
    stride: int
    """Pixels from one place of its map to the next; 0 if it has tokens."""
    axes: tuple[int, ...]
    """Of its output: what is averaged over."""
    skipped: int = 0
    """Tokens before those of the patches."""

    def __str__(self) -> str:
        return f"{self.name} ({self.width} channels{f', stride {self.stride}' if self.stride else ''})"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A backbone without its weights."""

    shapes: Mapping[str, tuple[int, ...]]
    """Shape of each tensor that the features depend on, by name."""
    classifier: str | None
    """The module that turns features into classes; None if there is none."""
    depths: tuple[Depth, ...]
    """Shallow to deep."""
    usual: tuple[Depth, ...]
    """Those of low, mid and high unless others are asked for."""
    folds: tuple[tuple[str, str], ...]
    """Convolutions, each with the BatchNorm that follows it."""


# -- names ------------------------------------------------------------------------------------------------------------


@lru_cache
def torchvision_names() -> tuple[str, ...]:
    """Classifiers that torchvision registers; read off its source, as importing it takes seconds."""
    spec = find_spec("torchvision")
    folder = Path(next(iter(spec.submodule_search_locations or ())), "models") if spec else Path()
    text = "\n".join(file.read_text(encoding="utf-8") for file in folder.glob("*.py"))
    return tuple(sorted(re.findall(r"^@register_model\(.*?^def (\w+)", text, re.DOTALL | re.MULTILINE)))


def check_backbone(name: str) -> str:
    """`name`, if it can be a backbone's. Raises `MrrnError` with the nearest names; needs no torch."""
    known = (*torchvision_names(), *PACKAGED)
    if name not in known and not is_timm(name):
        near = get_close_matches(name, known, cutoff=0.4) or ["resnet34", "resnet50", "convnext_tiny"]
        raise MrrnError(
            f"backbone {name!r} is not known; near it are {', '.join(near)}. Expected: a classifier of torchvision, "
            f"{', '.join(PACKAGED)}, or timm:NAME"
        )
    if is_timm(name) and find_spec("timm") is None:
        extra = "offline" if name in PACKAGED else "timm"
        raise MrrnError(f"backbone {name!r} needs the package timm: pip install 'mrrn[{extra}]'")
    return name


def split_timm(backbone: str) -> tuple[str, int | None]:
    """Name and size of "timm:NAME@SIZE"; None if there is no size. Raises `MrrnError` if timm does not have it."""
    import timm

    name, at, size = PACKAGED.get(backbone, backbone).removeprefix(TIMM).partition("@")
    if at and not (size.isascii() and size.isdigit() and 16 <= int(size) <= 2048):
        raise MrrnError(f"backbone {backbone!r}: the size after @ has to be a number of pixels from 16 to 2048")
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), cutoff=0.4)
        raise MrrnError(f"backbone {backbone!r}: timm has no {name!r}; near it are {some(near)}")
    return name, int(size) if at else None


def is_timm(backbone: str) -> bool:
    """Whether the network of `backbone` is timm's."""
    return PACKAGED.get(backbone, backbone).startswith(TIMM)


# -- building ---------------------------------------------------------------------------------------------------------


def build(backbone: str, size: int, device: str = "meta") -> Any:
    """The library's own network for crops of `size` pixels, untrained, in eval mode."""
    import torch

    try:
        with torch.device(device), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice on initialisation, which is overwritten
            return _built(backbone, size).eval().requires_grad_(False)
    except NotImplementedError:
        if device != "meta":
            raise
        return build(backbone, size, "cpu").to("meta")  # some constructors compute with tensors


def _built(backbone: str, size: int) -> "nn.Module":
    from torchvision import models

    if is_timm(backbone):
        return timm_network(split_timm(backbone)[0], size)
    net: nn.Module = getattr(models, backbone)(weights=None)
    if getattr(net, "image_size", size) != size:
        net = getattr(models, backbone)(weights=None, image_size=size)
    if hasattr(net, "transform_input"):
        setattr(net, "transform_input", True)  # noqa: B010  (torchvision's own weights of Inception need it)
    return net


def timm_network(name: str, size: int, *, pretrained: bool = False) -> "nn.Module":
    """timm's network for crops of `size` pixels."""
    import timm

    try:
        return timm.create_model(name, pretrained=pretrained, img_size=size)
    except TypeError:  # it takes any size
        return timm.create_model(name, pretrained=pretrained)


# -- watching ---------------------------------------------------------------------------------------------------------


@lru_cache
def architecture(backbone: str, size: int) -> Architecture:
    """The architecture of `backbone` for crops of `size` pixels. Raises `MrrnError` if it cannot be found out."""
    net = build(backbone, size)
    watched = _watch(net, size)
    classifier = _classifier(net, watched.shapes)
    order = list(watched.shapes)
    ends = order.index(classifier) if classifier else len(order)
    units = [name for name in sorted(_units(net, watched, ""), key=order.index) if order.index(name) < ends]
    # What is nearest to the classifier decides what kind of network it is: stems and patches are convolutions too.
    last = next((name for name in reversed(units) if _depth(name, watched)), "")
    depths, usual = (_blocks if len(watched.shapes.get(last, ())) == 3 else _stages)(net, watched, units)
    state = {name: value for name, value in net.state_dict().items() if value.is_floating_point()}
    shapes = {name: tuple(value.shape) for name, value in state.items() if not _is_below(name, classifier)}
    return Architecture(shapes=shapes, classifier=classifier, depths=depths, usual=usual, folds=watched.folds)


def _is_below(name: str, module: str | None) -> bool:
    return module is not None and name.startswith(f"{module}.")


@dataclass(frozen=True)
class _Observed:
    """What was seen of a network that ran."""

    size: int
    """Pixels of the picture's sides."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of the output of each module that ran once, in the order in which they ended."""
    folds: tuple[tuple[str, str], ...]


def _watch(net: "nn.Module", size: int) -> _Observed:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    names = {module: name for name, module in net.named_modules() if name}
    ended: list[tuple[str, tuple[int, ...]]] = []
    convolved: dict[int, str] = {}
    normalised: dict[str, int] = {}
    kept: list[Any] = []  # a tensor's id is its own as long as it is kept
    readers: Counter[int] = Counter()

    class Readers(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            kept.append((args, kwargs, result))
            readers.update(id(each) for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor))
            return result

    def note(module: "nn.Module", inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            ended.append((names[module], tuple(output.shape)))
            if isinstance(module, torch.nn.Conv2d):
                convolved[id(output)] = names[module]
            elif isinstance(module, torch.nn.BatchNorm2d):
                normalised[names[module]] = id(inputs[0])

    for module in names:
        module.register_forward_hook(note)
    with torch.no_grad(), Readers():
        net(torch.empty(1, 3, size, size, device="meta"))
    calls = Counter(name for name, _ in ended)
    return _Observed(
        size=size,
        shapes={name: shape for name, shape in ended if calls[name] == 1},
        folds=tuple(
            (convolved[read], norm)
            for norm, read in normalised.items()
            if read in convolved and readers[read] == calls[norm] == calls[convolved[read]] == 1
        ),
    )


def _classifier(net: "nn.Module", shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The last layer with weights, if it is one that can classify; some networks have none."""
    from torch import nn

    names = [name for name in shapes if net.get_submodule(name)._parameters]
    return names[-1] if names and isinstance(net.get_submodule(names[-1]), nn.Linear | nn.Conv2d) else None


def _depth(name: str, watched: _Observed, skipped: int = 0) -> Depth | None:
    """How the output of a module becomes features; None if it is no map and no tokens."""
    shape, size = watched.shapes[name], watched.size
    if len(shape) == 3 and shape[0] == 1 and shape[1] > 1:
        return Depth(name, shape[2], stride=0, axes=(1,), skipped=skipped)
    if len(shape) != 4 or shape[0] != 1:
        return None
    for side, other, channels in ((2, 3, 1), (1, 2, 3)):
        if shape[side] == shape[other] and 1 < shape[side] <= size:
            return Depth(name, shape[channels], 2 ** round(math.log2(size / shape[side])), axes=(side, other))
    return None


def _units(net: "nn.Module", watched: _Observed, prefix: str, stride: int = 1) -> Iterator[str]:
    """The modules that a network is a chain of: those that more than halve the map are taken apart."""
    for child, module in net.named_children():
        name = f"{prefix}{child}"
        depth = _depth(name, watched) if name in watched.shapes else None
        parts = []
        if name not in watched.shapes or (depth and depth.stride > 2 * stride):
            parts = list(_units(module, watched, f"{name}.", stride))
        yield from parts or [name] * (name in watched.shapes)
        if depth:
            stride = max(stride, depth.stride)


_Found = tuple[tuple[Depth, ...], tuple[Depth, ...]]
"""All depths, and the usual ones."""


def _stages(_net: "nn.Module", watched: _Observed, units: Sequence[str]) -> _Found:
    """The last module of each stride; usually the last three."""
    depths = [depth for depth in (_depth(name, watched) for name in units) if depth and depth.stride]
    last = {depth.stride: depth for depth in depths}
    return tuple(depths), tuple(last[stride] for stride in sorted(last)[-len(LEVELS) :])


def _blocks(net: "nn.Module", watched: _Observed, units: Sequence[str]) -> _Found:
    """The blocks and what follows them; usually the blocks at a third, at two thirds and at the end."""
    kinds: dict[Any, list[str]] = {}
    for name, shape in watched.shapes.items():
        if len(shape) == 3 and shape[0] == 1:
            kinds.setdefault((name.rpartition(".")[0], type(net.get_submodule(name)), shape), []).append(name)
    blocks = max(kinds.values(), key=len)
    order, shape = list(watched.shapes), watched.shapes[blocks[0]]
    first = next(index for index, name in enumerate(order) if name == blocks[0] or _is_below(name, blocks[0]))
    maps = [_depth(name, watched) for name in order[:first] if len(watched.shapes[name]) == 4]
    patches = (watched.shapes[maps[-1].name][maps[-1].axes[0]] ** 2) if maps and maps[-1] else shape[1]
    names = [*blocks, *(name for name in units if order.index(name) > order.index(blocks[-1]))]
    depths = [
        depth
        for name in names
        if watched.shapes[name] == shape and (depth := _depth(name, watched, max(0, shape[1] - patches)))
    ]
    thirds = [-(-len(blocks) * third // 3) - 1 for third in (1, 2, 3)] if len(blocks) >= len(LEVELS) else []
    return tuple(depths), tuple(depths[index] for index in thirds)


def choose_depths(backbone: str, size: int, names: Sequence[str]) -> dict[Level, Depth]:
    """The three depths called `names`, without names the usual ones. Raises `MrrnError`, with all that there are."""
    found = architecture(backbone, size)
    known = {depth.name: depth for depth in found.depths}
    chosen = [known[name] for name in names if name in known] if names else list(found.usual)
    places = [found.depths.index(depth) for depth in chosen]
    if len(chosen) != len(LEVELS) or places != sorted(set(places)):
        asked = ",".join(names) if names else "three depths of its own"
        raise MrrnError(
            f"{backbone} cannot be read at {asked}: name three of its depths, shallow to deep (--levels A,B,C). "
            f"It has {', '.join(map(str, found.depths)) or 'none that were found'}"
        )
    return dict(zip(LEVELS, chosen, strict=True))
