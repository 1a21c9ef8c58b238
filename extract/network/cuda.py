"""The network on a CUDA device: uploads on their own stream, one captured graph for every batch.

The host only queues work and runs ahead of the device by `depth` batches:

    host      copy block to pinned memory | queue upload | queue resize, crop, fill | queue graph, download | next block
    uploads   -------------------------------- host to device
    compute   ----------------------------------------------- resize, crop, fill -- graph ------- download

Events order the streams: compute waits for a block's upload, and a pinned buffer is reused once its upload is over.
"""

import gc
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cache.common.device import choose_kernels
from extract.network.preprocess import Crop, crop_views, resize
from extract.network.weights import Weights
from extract.settings import ExtractSettings

if TYPE_CHECKING:
    import torch
    from torch import Tensor

UPLOADS_AHEAD = 8
"""Pinned buffers, each as large as the largest block so far."""

WARM_UP = 3
"""Runs before the graph is captured, in which cuDNN chooses its kernels and allocates its memory."""


class CudaEngine:
    """See `extract.network.engine.Engine`."""

    depth = 3

    def __init__(self, settings: ExtractSettings, weights: Weights) -> None:
        import torch

        from extract.network.backbones import build_forward, columns_of

        self.batch_rows, self.preprocess = settings.batch_frames, weights.preprocess
        self._device = torch.device(settings.device)
        self._uploads = Uploads(self._device)
        self._compute = torch.cuda.Stream(self._device)
        self.columns = columns_of(weights, settings.levels, settings.depths)
        forward = build_forward(
            weights,
            device=settings.device,
            precision=settings.precision,
            levels=settings.levels,
            depths=settings.depths,
        )
        choose_kernels()
        with torch.cuda.device(self._device), torch.inference_mode():
            shape = (self.batch_rows, *[self.preprocess.crop] * 2, 3)
            self._batch = torch.zeros(shape, dtype=torch.uint8, device=self._device)
            self._graph, self._features = capture(forward, self._batch, self._compute)
        self._downloads: deque[tuple[Tensor, torch.cuda.Event]] = deque()

    def prepare(self, frames_FHW3: NDArray[np.uint8], crops: Sequence[Crop]) -> "Tensor":
        import torch

        with torch.cuda.device(self._device), torch.inference_mode(), torch.cuda.stream(self._compute):
            resized_F3HW = resize(self._uploads.send(frames_FHW3, self._compute), self.preprocess)
            return crop_views(resized_F3HW, crops, self.preprocess.crop)

    def fill(self, rows_BHW3: "Tensor", start: int) -> None:
        import torch

        with torch.inference_mode(), torch.cuda.stream(self._compute):
            self._batch[start : start + len(rows_BHW3)].copy_(rows_BHW3, non_blocking=True)

    def submit(self) -> None:
        import torch

        with torch.cuda.device(self._device), torch.inference_mode(), torch.cuda.stream(self._compute):
            self._graph.replay()
            on_host = torch.empty(self._features.shape, dtype=self._features.dtype, pin_memory=True)
            on_host.copy_(self._features, non_blocking=True)
            self._downloads.append((on_host, self._compute.record_event()))

    def fetch(self) -> NDArray[np.float16]:
        features_BC, downloaded = self._downloads.popleft()
        downloaded.synchronize()
        return features_BC.numpy()


class Uploads:
    """Copies blocks of frames to the device, through pinned buffers used in turn."""

    def __init__(self, device: "torch.device") -> None:
        import torch

        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._buffers: deque[tuple[Tensor, torch.cuda.Event | None]] = deque(
            (torch.empty(0, dtype=torch.uint8), None) for _ in range(UPLOADS_AHEAD)
        )

    def send(self, frames_FHW3: NDArray[np.uint8], reader: "torch.cuda.Stream") -> "Tensor":
        """The frames on the device, for use on the stream `reader`. The host's memory may be overwritten after."""
        import torch

        buffer, sent = self._buffers.popleft()
        if sent is not None:
            sent.synchronize()
        if buffer.numel() < frames_FHW3.size:
            buffer = torch.empty(frames_FHW3.size, dtype=torch.uint8, pin_memory=True)
        pinned = buffer[: frames_FHW3.size].view(frames_FHW3.shape)
        # Not by torch, which would take all cores for it, away from the decoders.
        np.copyto(pinned.numpy(), frames_FHW3)
        with torch.cuda.stream(self._stream):
            on_device = pinned.to(self._device, non_blocking=True)
            sent = self._stream.record_event()
        self._buffers.append((buffer, sent))
        reader.wait_event(sent)
        on_device.record_stream(reader)
        return on_device


def capture(
    forward: "Callable[[Tensor], Tensor]", batch: "Tensor", stream: "torch.cuda.Stream"
) -> "tuple[torch.cuda.CUDAGraph, Tensor]":
    """A graph that computes `forward` of the content of `batch` at each replay, and the tensor that gets the result."""
    import torch

    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            forward(batch)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    # What the collector frees during a capture, such as another engine's graph, would end it.
    gc.collect()
    with torch.cuda.graph(graph, stream=stream):
        features = forward(batch)
    return graph, features
