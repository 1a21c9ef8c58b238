"""Frames of many videos into batches of one shape, and features back to their videos. Bookkeeping, no arithmetic.

A row is one view of one frame. A video's rows are ordered by frame, then by view; in a batch they take whatever places
are free. C is the number of channels of all levels, side by side.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cache.ledger import Outcome
from extract.network.engine import Engine

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(eq=False)
class VideoRows:
    """A video on its way through the network."""

    outcome: Outcome | None = None
    """Known once its last frame has been decoded; None before."""
    packed: int = 0
    """Rows put into batches so far."""
    fetched: int = 0
    """Rows whose features have been fetched."""
    pts_seconds: list[NDArray[np.float64]] = field(default_factory=list)
    """[F] in pieces."""
    features: list[NDArray[np.float16]] = field(default_factory=list)
    """[rows, C] in pieces."""
    refused: str = ""
    """Why its frames are not used although they decode; empty if they are."""


class Packer:
    """Fills batches with rows in the order they come, and adds each batch's features to their videos."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._filled: list[tuple[VideoRows, int]] = []
        self._under_way: deque[list[tuple[VideoRows, int]]] = deque()
        self._free = engine.batch_rows

    def add(self, video: VideoRows, rows_BHW3: "Tensor") -> None:
        """Pack a video's next rows [n, h, w, 3]; full batches are submitted."""
        while len(rows_BHW3):
            count = min(self._free, len(rows_BHW3))
            self._engine.fill(rows_BHW3[:count], self._engine.batch_rows - self._free)
            self._filled.append((video, count))
            self._free -= count
            video.packed += count
            rows_BHW3 = rows_BHW3[count:]
            if not self._free:
                self._submit()

    def flush(self) -> None:
        """Submit the last rows, padded with the content of the batch before, and fetch everything."""
        if self._filled:
            self._submit()
        while self._under_way:
            self._fetch()

    def _submit(self) -> None:
        self._engine.submit()
        self._under_way.append(self._filled)
        self._filled, self._free = [], self._engine.batch_rows
        while len(self._under_way) > self._engine.depth:
            self._fetch()

    def _fetch(self) -> None:
        features_BC = self._engine.fetch()
        start = 0
        for video, count in self._under_way.popleft():
            video.features.append(features_BC[start : start + count].copy())
            video.fetched += count
            start += count
