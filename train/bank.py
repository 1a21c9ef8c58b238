"""Features of a set of videos on the training device, from which clips are gathered by index.

Shapes: V views, F frames of all videos together, N clips, T steps, B batch, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.clips import ClipRule
from cache.dataset import Video
from cache.errors import TrainingError
from cache.schema import Level
from cache.store import FeatureCache
from train.cliptable import ClipTable, cut

_CHECKED_AT_ONCE = 1 << 18
"""Frames looked at together for NaN and Inf: bounds the memory that the check takes."""


@dataclass(frozen=True)
class Bank:
    """Features, clips and labels of some videos on one device."""

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

    def gather(self, clip_B: Tensor, view_B: Tensor) -> Tensor:
        """Features of clips `clip_B`, each in its view: float32 `[T, B, C]`. Indices are int64 on the bank's device."""
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
) -> Bank:
    """Load the features of labelled `videos`, all views unless some are named; TrainingError at NaN or Inf in them."""
    ids = [video.id for video in videos]
    loaded = cache.load(level, ids, device=str(device), views=views)
    clips = cut(ids, [_label(video) for video in videos], loaded.offsets, loaded.pts_seconds, rule)
    _check_finite(loaded.features, loaded.offsets, ids, level)
    return Bank(
        features_VFC=loaded.features,
        frames_NT=torch.from_numpy(clips.frames_NT).to(device),
        label_N=torch.from_numpy(clips.label_N).to(device),
        clips=clips,
    )


def _label(video: Video) -> int:
    if video.label is None:
        raise TrainingError(f"video {video.id!r} is in the split but has no class; give it one, or take it out")
    return video.label


def _check_finite(features_VFC: Tensor, offsets: NDArray[np.int64], ids: Sequence[str], level: Level) -> None:
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
