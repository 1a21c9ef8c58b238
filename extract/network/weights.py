"""The backbone's weights: torchvision's, from a file, or random with a seed; checked, and named by a hash."""

import hashlib
import urllib.error
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cache.common.errors import WeightsError
from cache.common.text import some

if TYPE_CHECKING:
    from torch import Tensor

BACKBONES: Final = ("resnet34", "resnet18")
"""Networks of one family whose levels have the same widths."""

IMAGENET: Final = "imagenet1k_v1"
"""torchvision's first ImageNet weights; the paper is from the same time."""

TORCHVISION_FILES = {"resnet34": "resnet34-b627a593.pth", "resnet18": "resnet18-f37072fd.pth"}
"""torchvision's IMAGENET1K_V1 files; the suffix of each name is the start of the file's SHA-256."""

LAST_NORM_GAIN = 0.5
"""Scale at the end of each residual block, in random weights."""

_UNUSED = ("fc.weight", "fc.bias")
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Weights:
    """Checked tensors of one backbone."""

    text: str
    """Their name in reports: "imagenet1k_v1", "random:0", or the file's name."""
    backbone: str
    tensors: "Mapping[str, Tensor]"
    """Every convolution and BatchNorm tensor of the trunk by torchvision's name: float32, contiguous, on the CPU."""
    sha256: str
    """Hash of names, shapes and float32 values: the same for one set of weights in any container."""


def is_file_spec(spec: str) -> bool:
    """Whether `spec` names a file, rather than torchvision's weights or random ones."""
    return spec != IMAGENET and not spec.startswith("random:")


def weights_text(spec: str) -> str:
    """The name of the weights `spec` in reports: of a file without its folder, which must not leak into outputs."""
    return Path(spec).name if is_file_spec(spec) else spec


def load_weights(spec: str, backbone: str) -> Weights:
    """Weights for `backbone` from `spec`: "imagenet1k_v1", "random:SEED", or a .pth or .safetensors file.

    Raises WeightsError, with what to give instead, if they are missing or do not fit.
    """
    expected = expected_shapes(backbone)
    if spec == IMAGENET:
        state, origin = _from_torchvision(backbone), f"torchvision's {TORCHVISION_FILES[backbone]}"
    elif spec.startswith("random:"):
        seed = spec.removeprefix("random:")
        if not (seed.isascii() and seed.isdigit()) or int(seed) >= 2**32:
            raise WeightsError(f"weights {spec!r}: the seed has to be a whole number below 2^32, for example random:0")
        state, origin = _random(int(seed), expected), spec
    else:
        state, origin = _from_file(Path(spec)), spec
    tensors = _check(state, expected, origin, backbone)
    return Weights(text=weights_text(spec), backbone=backbone, tensors=tensors, sha256=_sha256(tensors))


def expected_shapes(backbone: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor that the trunk of `backbone` computes with, in torchvision's order."""
    import torch
    from torchvision import models

    if backbone not in BACKBONES:
        raise WeightsError(f"backbone {backbone!r} is not known; choose one of {', '.join(BACKBONES)}")
    with torch.device("meta"):
        state = getattr(models, backbone)(weights=None).state_dict()
    return {name: tuple(value.shape) for name, value in state.items() if not _is_unused(name)}


def _is_unused(name: str) -> bool:
    return name in _UNUSED or name.endswith(_COUNTER)


def _from_torchvision(backbone: str) -> "Mapping[str, Tensor]":
    from torchvision import models

    file = TORCHVISION_FILES[backbone]
    try:
        choice = models.get_model_weights(backbone)["IMAGENET1K_V1"]
        return choice.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise WeightsError(
            f"weights {IMAGENET} could not be downloaded ({error}). Without network, fetch torchvision's file {file} "
            f"on another machine (https://download.pytorch.org/models/{file}) and pass it: WEIGHTS=path/to/{file} or "
            f"--weights path/to/{file}; --weights random:0 runs without any training of the backbone"
        ) from error


def _random(seed: int, expected: Mapping[str, tuple[int, ...]]) -> "dict[str, Tensor]":
    """He's uniform initialisation (fan out); BatchNorm neutral, but for the last one of each residual block.

    That one halves its block, or each would double the variance, and the features of layer4 would be twenty times
    those of layer2. So all levels are about as large as a trained network's (means of 0.3 to 0.5).

    The numbers come from NumPy's RandomState, whose stream is frozen, as whole-number draws times a constant: no
    logarithm or cosine whose last bit depends on the platform.
    """
    import numpy as np
    import torch

    random = np.random.RandomState(seed)
    state = {}
    for name, shape in expected.items():
        if len(shape) == 4:
            bound = np.sqrt(6.0 / (shape[0] * shape[2] * shape[3]))
            values = (random.random_sample(shape) * 2.0 - 1.0) * bound
        else:
            values = np.ones(shape) if name.endswith(("running_var", "weight")) else np.zeros(shape)
            values = values * LAST_NORM_GAIN if name.endswith("bn2.weight") else values
        state[name] = torch.from_numpy(values.astype(np.float32))
    return state


def _from_file(path: Path) -> "Mapping[str, Tensor]":
    if not path.is_file():
        raise WeightsError(
            f"weights {str(path)!r} are not a file; give {IMAGENET}, random:SEED, or a .pth or .safetensors file "
            "with torchvision's key names"
        )
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
    state: "Mapping[str, Tensor]", expected: Mapping[str, tuple[int, ...]], origin: str, backbone: str
) -> "dict[str, Tensor]":
    """The expected tensors, float32. Raises WeightsError naming those missing, unknown, misshaped or not finite."""
    import torch

    names = {
        "missing": [name for name in expected if name not in state],
        "unknown": [str(name) for name in state if name not in expected and not _is_unused(str(name))],
    }
    if any(names.values()):
        problems = "; ".join(f"{problem} {some(listed)}" for problem, listed in names.items() if listed)
        raise WeightsError(
            f"weights {origin} do not fit {backbone}: {problems}; "
            "expected the key names of torchvision's state dict; --backbone chooses another network"
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
