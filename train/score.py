"""Scores: the softmax of every clip. A head's logits become probabilities here and nowhere else.

Shapes: N clips, T steps, F frames, B batch, C channels, K classes.
"""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.scores import ScoreTable
from train.clips import ClipBank
from train.config import RunConfig
from train.heads import Head

_CLIPS_AT_ONCE = 128
"""Clips scored together; bounds the memory that scoring takes."""

_IN_SCORES = (
    "dataset", "split", "level", "pool", "seed", "variant", "weights", "fingerprint", "cache_digest", "holdout",
    "watch",
)  # fmt: skip
"""Fields of the run's configuration that the score table repeats."""


def score_clips(head: Head, features: Tensor | NDArray[np.floating], clips: NDArray[np.int64]) -> NDArray[np.float32]:
    """Returns the softmax `[N, K]` float32 of `clips` `[N, T]`: indices into `features` `[F, C]`, any float dtype.

    Runs on the head's device, in float32, without dropout. Leaves the head in eval mode.
    """
    device = next(head.parameters()).device
    features_FC = torch.as_tensor(features).to(device)
    clips_NT = torch.as_tensor(clips).to(device)
    return _softmax(head, (features_FC[frames_BT.t()].float() for frames_BT in clips_NT.split(_CLIPS_AT_ONCE)))


def _softmax(head: Head, batches: Iterable[Tensor]) -> NDArray[np.float32]:
    """Softmax `[N, K]` of the clips in `batches`, each `[T, B, C]`."""
    head.eval()
    with torch.inference_mode():
        parts = [torch.softmax(head(x_TBC).float(), dim=1) for x_TBC in batches if x_TBC.shape[1]]
    if not parts:
        return np.empty((0, head.classes), dtype=np.float32)
    return torch.cat(parts).cpu().numpy()


def score_bank(head: Head, bank: ClipBank, config: RunConfig) -> ScoreTable:
    """Returns the scores of all clips of `bank` in its first view, with the run that they come from."""
    clips = bank.clips
    device = bank.label_N.device
    batches = [(clip_B, torch.zeros_like(clip_B)) for clip_B in torch.arange(len(bank)).split(_CLIPS_AT_ONCE)]
    bank.announce(batches)
    softmax_NK = _softmax(head, (bank.gather(clip_B.to(device), view_B.to(device)) for clip_B, view_B in batches))
    return ScoreTable(
        video_ids=np.asarray(clips.sample_ids, dtype=np.str_)[clips.sample_N],
        spans=clips.spans_N2,
        labels=clips.label_N,
        softmax=softmax_NK,
        classes=np.asarray(config.classes, dtype=np.str_),
        run={**config.described(_IN_SCORES), "frames": clips.frames, "unread_frames": clips.unread},
    )
