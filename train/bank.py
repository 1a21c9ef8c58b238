"""Features of a set of videos, from which clips are gathered by index: on the device where they fit.

Shapes: V views, F frames of all videos together, N clips, T steps, B batch, C channels.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.clips import ClipRule
from cache.dataset import Video
from cache.errors import TrainingError
from cache.memory import available_bytes
from cache.schema import CHANNELS, Level
from cache.store import FeatureCache
from train.cliptable import ClipTable, cut
from train.stream import Batch, StreamedBank, from_cache, from_memory

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
