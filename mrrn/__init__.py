"""MRRN in Python: caches, their features for other programs, predictions (docs/python.md).

Each name is imported when it is first used, so that `import mrrn` and reading a cache cost no torch.
"""

import platform
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cache.store import FeatureCache
    from fuse.predictor import Predictor
    from train.clip_dataset import ClipDataset

    open_cache = FeatureCache.open
    __version__: str

NOT_HERE = (
    ""
    if sys.platform == "linux"
    else f"MRRN runs on Linux, this is {platform.system()}: use WSL 2, or a container (Dockerfile)"
)
"""What other systems are told; empty on Linux."""

_PLACES = {
    "ClipDataset": "train.clip_dataset",
    "FeatureCache": "cache.store",
    "Predictor": "fuse.predictor",
}

__all__ = ["ClipDataset", "FeatureCache", "Predictor", "__version__", "open_cache"]


def __getattr__(name: str) -> Any:
    if NOT_HERE and name in __all__:
        raise ImportError(NOT_HERE)
    if name == "__version__":
        return import_module("importlib.metadata").version("mrrn")
    if name == "open_cache":
        return import_module("cache.store").FeatureCache.open
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'mrrn' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
