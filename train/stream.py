"""Banks larger than the memory at hand: batches are read from the cache, or from main memory, ahead of their use.

The batches are bit for bit those of `train.bank.Bank`. Shapes: V views, N clips, T steps, B batch, C channels.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.errors import TrainingError
from cache.schema import CHANNELS, Level
from cache.store import FeatureCache
from train.cliptable import ClipTable

ReadBatch = Callable[[NDArray[np.int64], NDArray[np.int64]], Tensor]
"""clips `[B]`, views `[B]` -> float16 `[T, B, C]` in main memory"""

Batch = tuple[Tensor, Tensor]
"""clips `[B]`, views `[B]`: int64 on the CPU"""

_READERS = 4
_BATCHES_AHEAD = 16


class StreamedBank:
    """Clips of some videos, whose features are fetched batch by batch in the order that was announced."""

    def __init__(self, clips: ClipTable, num_views: int, device: torch.device, read: ReadBatch, where: str) -> None:
        self.clips, self.num_views, self.device = clips, num_views, device
        self.label_N = torch.from_numpy(clips.label_N).to(device)
        self.where = where
        """Where features are read from, in words."""
        self._read = read
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="train-read")
        self._coming: Iterator[Batch] = iter(())
        self._reading: deque[Future[Tensor]] = deque()

    def __len__(self) -> int:
        return len(self.clips)

    def announce(self, batches: Iterable[Batch]) -> None:
        """These batches will be gathered one after the other; forgets what was announced before."""
        for future in self._reading:
            future.cancel()
        self._reading.clear()
        self._coming = iter(batches)
        self._read_ahead()

    def _read_ahead(self) -> None:
        for clip_B, view_B in islice(self._coming, _BATCHES_AHEAD - len(self._reading)):
            self._reading.append(self._readers.submit(self._checked, clip_B.numpy(), view_B.numpy()))

    def _checked(self, clip_B: NDArray[np.int64], view_B: NDArray[np.int64]) -> Tensor:
        x_TBC = self._read(clip_B, view_B)
        if not bool(torch.isfinite(x_TBC).all()):
            bad_B = ~torch.isfinite(x_TBC).all(dim=2).all(dim=0).numpy()
            raise TrainingError(
                f"video {self.clips.ids_of(clip_B[bad_B])[0]!r} has NaN or Inf among its features: extract it again"
            )
        return x_TBC.pin_memory() if self.device.type == "cuda" else x_TBC

    def gather(self, clip_B: Tensor, view_B: Tensor) -> Tensor:
        """The next announced batch, float32 `[T, B, C]` on the device; the indices say how many clips it has."""
        x_TBC = self._reading.popleft().result()
        assert x_TBC.shape[1] == len(clip_B) == len(view_B), "batches are gathered as they were announced"
        self._read_ahead()
        return x_TBC.to(self.device, non_blocking=True).float()


def from_memory(features_VFC: Tensor, frames_NT: NDArray[np.int64]) -> ReadBatch:
    """Read batches from a bank in main memory, for a device with less."""
    views, frames, channels = features_VFC.shape
    rows = features_VFC.view(views * frames, channels)

    def read(clip_B: NDArray[np.int64], view_B: NDArray[np.int64]) -> Tensor:
        row_TB = (frames_NT[clip_B] + view_B[:, None] * frames).T
        return rows[torch.from_numpy(np.ascontiguousarray(row_TB))]

    return read


def from_cache(cache: FeatureCache, level: Level, clips: ClipTable, offsets: NDArray[np.int64]) -> ReadBatch:
    """Read batches from the cache's shards; each video is verified when it is first read."""

    def read(clip_B: NDArray[np.int64], view_B: NDArray[np.int64]) -> Tensor:
        x_TBC = np.empty((clips.frames_NT.shape[1], len(clip_B), CHANNELS[level]), dtype=np.float16)
        for b, (clip, view) in enumerate(zip(clip_B.tolist(), view_B.tolist(), strict=True)):
            video = clips.video_N[clip]
            frames_T = clips.frames_NT[clip] - offsets[video]
            start, stop = int(frames_T.min()), int(frames_T.max()) + 1
            span_FC = cache.features(clips.video_ids[video], level, view, start, stop)
            x_TBC[:, b] = span_FC[frames_T - start]
        return torch.from_numpy(x_TBC)

    return read
