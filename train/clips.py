"""Which frames make up which clip: index lists into the features of a set of videos. Pure numpy.

Shapes: N clips, T steps, F frames of all videos together.

Banks larger than the memory at hand: batches are read from the cache, or from main memory, ahead of their use.

The batches are bit for bit those of `train.clips.Bank`. Shapes: V views, N clips, T steps, B batch, C channels.

Features of a set of videos, from which clips are gathered by index: on the device where they fit.

Shapes: V views, F frames of all videos together, N clips, T steps, B batch, C channels.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Protocol

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.clips import ClipRule
from cache.common.device import available_bytes
from cache.common.errors import TrainingError
from cache.dataset import Video
from cache.fingerprint import CHANNELS, Level
from cache.store import FeatureCache


@dataclass(frozen=True, kw_only=True)
class ClipTable:
    """The clips of some videos, video after video."""

    video_ids: tuple[str, ...]
    """The videos, in the order of their frames."""
    video_N: NDArray[np.int64]
    """Index of each clip's video."""
    label_N: NDArray[np.int64]
    """Class index of each clip's video."""
    frames_NT: NDArray[np.int64]
    """Frame indices of each clip, counted over all videos together."""
    spans_N2: NDArray[np.int64]
    """First frame of each clip and one past its last, `[start, stop)`, within the video at the clip rule's rate."""

    def __len__(self) -> int:
        return len(self.video_N)

    def ids_of(self, clips: NDArray[np.int64]) -> list[str]:
        """Ids of the videos that `clips` come from, each once, in their order."""
        return [self.video_ids[video] for video in np.unique(self.video_N[clips])]


def cut(
    video_ids: Sequence[str],
    labels: Sequence[int],
    offsets: NDArray[np.int64],
    pts_seconds: NDArray[np.float64],
    rule: ClipRule,
) -> ClipTable:
    """Cut videos into clips. Video `i` has the frames `[offsets[i], offsets[i + 1])` of `pts_seconds` `[F]`."""
    frames, spans = [], []
    for first, stop in pairwise(offsets.tolist()):
        pts_F = pts_seconds[first:stop]
        frames.append(rule.frames(pts_F) + first)
        starts = np.asarray(rule.starts(len(rule.resample(pts_F))), dtype=np.int64)
        spans.append(np.stack([starts, starts + rule.length], axis=1))
    counts = [len(each) for each in frames]
    return ClipTable(
        video_ids=tuple(video_ids),
        video_N=np.repeat(np.arange(len(counts)), counts),
        label_N=np.repeat(np.asarray(labels, dtype=np.int64), counts),
        frames_NT=np.concatenate(frames) if frames else np.empty((0, rule.length), dtype=np.int64),
        spans_N2=np.concatenate(spans) if spans else np.empty((0, 2), dtype=np.int64),
    )


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


_CHECKED_AT_ONCE = 1 << 18
"""Frames looked at together for NaN and Inf: bounds the memory that the check takes."""

_SHARE = 0.6
"""Share of free memory that features may take."""


class ClipBank(Protocol):
    """What training and scoring draw clips from."""

    @property
    def clips(self) -> ClipTable:
        """The clips with their videos."""

    @property
    def label_N(self) -> Tensor:
        """int64: class index of each clip, on the device."""

    @property
    def num_views(self) -> int:
        """Views of each video that clips can be drawn from."""

    def __len__(self) -> int:
        """Number of clips."""

    def announce(self, batches: Iterable[Batch]) -> None:
        """These batches will be gathered, one after the other."""

    def gather(self, clip_B: Tensor, view_B: Tensor) -> Tensor:
        """Features of clips `clip_B`, each in its view: float32 `[T, B, C]`. Indices are int64 on the device."""


@dataclass(frozen=True)
class Bank:
    """All features on the device: gathering is one indexing there."""

    features_VFC: Tensor
    """float16 `[V, F, C]`."""
    frames_NT: Tensor
    """int64: frame indices of each clip."""
    label_N: Tensor
    """int64: class index of each clip."""
    clips: ClipTable
    """The same clips with their videos, on the host."""

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def num_views(self) -> int:
        """Views of each video that clips can be drawn from."""
        return len(self.features_VFC)

    def announce(self, batches: Iterable[Batch]) -> None:
        """Nothing to prepare: every clip is at hand."""

    def gather(self, clip_B: Tensor, view_B: Tensor) -> Tensor:
        """See `ClipBank.gather`."""
        views, frames, channels = self.features_VFC.shape
        row_TB = self.frames_NT[clip_B].t() + view_B * frames
        return self.features_VFC.view(views * frames, channels)[row_TB].float()


def load_bank(
    cache: FeatureCache,
    level: Level,
    videos: Sequence[Video],
    rule: ClipRule,
    device: torch.device,
    views: Sequence[int] | None = None,
) -> ClipBank:
    """The clips of labelled `videos`, in all views unless some are named; TrainingError at NaN or Inf in features.

    Features are held on the device where they fit, else in main memory, else read from the cache batch by batch.
    """
    chosen = list(range(len(cache.views))) if views is None else list(views)
    ids = [video.id for video in videos]
    labels = [_label(video) for video in videos]
    num_bytes = sum(cache.num_frames(video) for video in ids) * len(chosen) * CHANNELS[level] * 2
    if num_bytes > _SHARE * available_bytes():
        return _streamed(cache, level, ids, labels, rule, device, chosen, num_bytes)
    loaded = cache.load(level, ids, views=chosen, device="cpu" if num_bytes > _room(device) else str(device))
    clips = cut(ids, labels, loaded.offsets, loaded.pts_seconds, rule)
    check_finite(loaded.features, loaded.offsets, ids, level)
    if loaded.features.device.type != device.type:
        _say(level, num_bytes, "the device's memory: they stay in main memory")
        return StreamedBank(clips, len(chosen), device, from_memory(loaded.features, clips.frames_NT), "main memory")
    return Bank(
        features_VFC=loaded.features,
        frames_NT=torch.from_numpy(clips.frames_NT).to(device),
        label_N=torch.from_numpy(clips.label_N).to(device),
        clips=clips,
    )


def _room(device: torch.device) -> float:
    """Bytes that features may take on the device."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_bytes()
    return _SHARE * free


def _streamed(
    cache: FeatureCache,
    level: Level,
    ids: Sequence[str],
    labels: Sequence[int],
    rule: ClipRule,
    device: torch.device,
    views: Sequence[int],
    num_bytes: int,
) -> StreamedBank:
    _say(level, num_bytes, "memory: they are read from the cache batch by batch")
    offsets = np.concatenate([[0], np.cumsum([cache.num_frames(video) for video in ids])]).astype(np.int64)
    pts_seconds = np.concatenate([cache.pts_seconds(video) for video in ids])
    clips = cut(ids, labels, offsets, pts_seconds, rule)
    read = from_cache(cache, level, clips, offsets)
    numbers = np.asarray(views, dtype=np.int64)
    return StreamedBank(clips, len(views), device, lambda clip_B, view_B: read(clip_B, numbers[view_B]), "the cache")


def _say(level: Level, num_bytes: int, what: str) -> None:
    click.echo(f"the {level} features ({num_bytes / 2**30:,.1f} GiB) do not fit into {what}")


def _label(video: Video) -> int:
    if video.label is None:
        raise TrainingError(f"video {video.id!r} is in the split but has no class; give it one, or take it out")
    return video.label


def check_finite(features_VFC: Tensor, offsets: NDArray[np.int64], ids: Sequence[str], level: Level) -> None:
    """TrainingError naming the first video with NaN or Inf; video i has frames `[offsets[i], offsets[i + 1])`."""
    for first in range(0, features_VFC.shape[1], _CHECKED_AT_ONCE):
        part = features_VFC[:, first : first + _CHECKED_AT_ONCE]
        bad_F = ~torch.isfinite(part).all(dim=2).all(dim=0)
        if bool(bad_F.any()):
            frame = first + int(bad_F.nonzero()[0])
            video = next(index for index, stop in enumerate(offsets[1:]) if frame < stop)
            raise TrainingError(
                f"video {ids[video]!r} has NaN or Inf among its {level} features (frame {frame - offsets[video]}): "
                "extract it again (`python -m cache verify` and `repair` look at all of them)"
            )
