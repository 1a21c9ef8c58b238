"""The device that computes batches: all of one shape, submitted without waiting, fetched in order.

Shapes: F frames of a block, V views, B rows of a batch (a row is one view of one frame), C channels of all levels.
"""

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from cache.common.device import find_device, keep_freed_memory
from cache.fingerprint import Level
from extract.network.preprocess import Crop, Preprocess, crop_views, resize
from extract.network.weights import Weights
from extract.settings import ExtractSettings

if TYPE_CHECKING:
    from torch import Tensor

FeaturesBC = NDArray[np.float16]


class Engine(Protocol):
    """A device with the network on it."""

    batch_rows: int
    """B."""
    depth: int
    """Batches that may be under way after one is submitted; the caller fetches the oldest beyond that."""

    preprocess: Preprocess
    """How frames are resized and cropped."""
    columns: dict[Level, slice]
    """Of each level in the features."""

    def prepare(self, frames_FHW3: NDArray[np.uint8], crops: Sequence[Crop]) -> "Tensor":
        """Frames in host memory -> crops [F, V, h, w, 3] uint8 on the device. The frames are free after."""

    def fill(self, rows_BHW3: "Tensor", start: int) -> None:
        """Copy crops into rows [start, start + B') of the batch being filled."""

    def submit(self) -> None:
        """Compute the filled batch and begin a new one, whose rows keep their content until they are filled."""

    def fetch(self) -> FeaturesBC:
        """Features [B, C] of the oldest batch not fetched yet; waits for it."""


def open_engine(settings: ExtractSettings, weights: Weights) -> Engine:
    """The engine for `settings.device`. Raises MrrnError if the device is missing."""
    find_device(settings.device)
    if settings.device.startswith("cuda"):
        from extract.network.cuda import CudaEngine

        return CudaEngine(settings, weights)
    return CpuEngine(settings, weights)


class CpuEngine:
    """Computes a batch when it is submitted: on a CPU a queue gains nothing."""

    depth = 0

    def __init__(self, settings: ExtractSettings, weights: Weights) -> None:
        import torch

        from extract.network.backbones import build_forward, columns_of

        keep_freed_memory()
        self.batch_rows, self.preprocess = settings.batch_frames, weights.preprocess
        self.columns = columns_of(weights, settings.levels, settings.depths)
        self._forward = build_forward(
            weights, device="cpu", precision=settings.precision, levels=settings.levels, depths=settings.depths
        )
        self._batch = torch.zeros((self.batch_rows, *[self.preprocess.crop] * 2, 3), dtype=torch.uint8)
        self._done: deque[FeaturesBC] = deque()

    def prepare(self, frames_FHW3: NDArray[np.uint8], crops: Sequence[Crop]) -> "Tensor":
        import torch

        resized_F3HW = resize(torch.from_numpy(frames_FHW3), self.preprocess)
        return crop_views(resized_F3HW, crops, self.preprocess.crop)

    def fill(self, rows_BHW3: "Tensor", start: int) -> None:
        self._batch[start : start + len(rows_BHW3)] = rows_BHW3

    def submit(self) -> None:
        self._done.append(self._forward(self._batch).numpy())

    def fetch(self) -> FeaturesBC:
        return self._done.popleft()
