"""The clips that training and scoring draw from: index lists into features, on the device if they fit, else streamed.

A `Bank` holds all features on the device. A `StreamedBank` reads batches ahead of their use, from main memory or from
the cache; its batches equal those of a `Bank` bit for bit.

Shapes: V views, F frames of all videos together, N clips, T steps, B batch, C channels.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.clips import ClipRule
from cache.common.console import say
from cache.common.device import available_bytes
from cache.common.errors import TrainingError
from cache.dataset import Sample
from cache.fingerprint import Level
from cache.store import FeatureCache

Batch = tuple[Tensor, Tensor]
"""Clips `[B]` and their views `[B]`: int64 on the CPU."""

ReadBatch = Callable[[Tensor, Tensor], Tensor]
"""Clips `[B]`, views `[B]` -> features float16 `[T, B, C]` in main memory."""

_SHARE = 0.6
"""Largest share of free memory that features may take."""

_READERS = 4
"""Threads that read batches of a StreamedBank."""

_BATCHES_AHEAD = 16
"""Batches that they read ahead of their use."""

_CLIPS_AT_ONCE = 128
"""Clips that are read together in a pass over all of them."""

_CHECKED_AT_ONCE = 1 << 18
"""Frames checked together for NaN and Inf; bounds the memory that the check takes."""


@dataclass(frozen=True, kw_only=True)
class ClipTable:
    """The clips of some samples, sample after sample."""

    sample_ids: tuple[str, ...]
    sample_N: NDArray[np.int64]
    """Index of each clip's sample."""
    label_N: NDArray[np.int64]
    """Class index of each clip's sample."""
    frames_NT: NDArray[np.int64]
    """Frame indices of each clip, counted over all videos together."""
    spans_N2: NDArray[np.int64]
    """First frame of each clip and one past its last, `[start, stop)`, within the sample at the clip rule's rate."""
    frames: int
    """Frames of all samples."""
    unread: int
    """Those of them that are in no clip."""

    def __len__(self) -> int:
        return len(self.sample_N)

    def ids_of(self, clips: NDArray[np.int64]) -> list[str]:
        """Returns the ids of the samples that `clips` come from, each once, in the order of the samples."""
        return [self.sample_ids[sample] for sample in np.unique(self.sample_N[clips])]


def cut(
    sample_ids: Sequence[str],
    labels: Sequence[int],
    ranges: Sequence[range],
    pts_seconds: NDArray[np.float64],
    rule: ClipRule,
) -> ClipTable:
    """Cuts samples into clips. Sample `i` has the frames `ranges[i]` of `pts_seconds` `[F]`."""
    frames, spans, read = [], [], 0
    for each in ranges:
        pts_F = pts_seconds[each.start : each.stop]
        frames.append(rule.frames(pts_F) + each.start)
        read += len(np.unique(frames[-1]))
        starts = np.asarray(rule.starts(len(rule.resample(pts_F))), dtype=np.int64)
        spans.append(np.stack([starts, starts + rule.length], axis=1))
    counts = [len(each) for each in frames]
    return ClipTable(
        sample_ids=tuple(sample_ids),
        sample_N=np.repeat(np.arange(len(counts)), counts),
        label_N=np.repeat(np.asarray(labels, dtype=np.int64), counts),
        frames_NT=np.concatenate(frames) if frames else np.empty((0, rule.length), dtype=np.int64),
        spans_N2=np.concatenate(spans) if spans else np.empty((0, 2), dtype=np.int64),
        frames=sum(map(len, ranges)),
        unread=sum(map(len, ranges)) - read,
    )


@dataclass(frozen=True)
class Bank:
    """All features are on the device, and a batch is gathered by one indexing there."""

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
        """Say which batches will be gathered next, in their order. Does nothing here: every clip is on the device."""

    def gather(self, clip_B: Tensor, view_B: Tensor) -> Tensor:
        """Returns the clips `clip_B`, each in its view: float32 `[T, B, C]`. Indices are int64 on the device."""
        return _gather(self.features_VFC, self.frames_NT, clip_B, view_B).float()


def _gather(features_VFC: Tensor, frames_NT: Tensor, clip_B: Tensor, view_B: Tensor) -> Tensor:
    """Returns the clips `clip_B`, each in its view: float16 `[T, B, C]`, on the device of all these tensors."""
    row_BT = frames_NT[clip_B] + view_B[:, None] * features_VFC.shape[1]
    # A batch has its index's strides, and noise is drawn in the order of memory: it must not depend on the bank.
    return features_VFC.view(-1, features_VFC.shape[2])[row_BT.t().contiguous()]


class StreamedBank:
    """Features are read batch by batch, in the order that was announced, by threads that are ahead of the training."""

    def __init__(self, clips: ClipTable, num_views: int, device: torch.device, read: ReadBatch) -> None:
        self.clips, self.num_views, self.device = clips, num_views, device
        self.label_N = torch.from_numpy(clips.label_N).to(device)
        self._read = read
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="train-read")
        self._coming: Iterator[Batch] = iter(())
        self._reading: deque[Future[Tensor]] = deque()

    def __len__(self) -> int:
        return len(self.clips)

    def announce(self, batches: Iterable[Batch]) -> None:
        """Start to read these batches, which will be gathered in this order; drops those announced before."""
        for future in self._reading:
            future.cancel()
        self._reading.clear()
        self._coming = iter(batches)
        self._read_ahead()

    def _read_ahead(self) -> None:
        for clip_B, view_B in islice(self._coming, _BATCHES_AHEAD - len(self._reading)):
            self._reading.append(self._readers.submit(self._checked, clip_B, view_B))

    def _checked(self, clip_B: Tensor, view_B: Tensor) -> Tensor:
        x_TBC = self._read(clip_B, view_B)
        if not bool(torch.isfinite(x_TBC).all()):
            bad_B = clip_B[~torch.isfinite(x_TBC).all(dim=2).all(dim=0)]
            raise TrainingError(
                f"video {self.clips.ids_of(bad_B.numpy())[0]!r} has NaN or Inf among its features: extract it again"
            )
        return x_TBC.pin_memory() if self.device.type == "cuda" else x_TBC

    def gather(self, clip_B: Tensor, view_B: Tensor) -> Tensor:
        """Returns the next announced batch, float32 `[T, B, C]` on the device. Its clips have to be `clip_B`."""
        x_TBC = self._reading.popleft().result()
        assert x_TBC.shape[1] == len(clip_B) == len(view_B), "batches are gathered as they were announced"
        self._read_ahead()
        return x_TBC.to(self.device, non_blocking=True).float()


ClipBank = Bank | StreamedBank
"""What training and scoring draw clips from."""


def whole_bank(bank: ClipBank) -> Iterator[tuple[Tensor, int, Tensor]]:
    """Yields all clips in each view, in order: indices `[B]` on the CPU, the view, and features `[T, B, C]`."""
    clip_N, device = torch.arange(len(bank)), bank.label_N.device
    batches = [(clip_B, view) for view in range(bank.num_views) for clip_B in clip_N.split(_CLIPS_AT_ONCE)]
    bank.announce((clip_B, torch.full_like(clip_B, view)) for clip_B, view in batches)
    for clip_B, view in batches:
        there_B = clip_B.to(device)
        yield clip_B, view, bank.gather(there_B, torch.full_like(there_B, view))


def channel_statistics(
    bank: ClipBank, rows_of: Callable[[Tensor], Tensor] = lambda x_TBC: x_TBC.flatten(0, 1)
) -> tuple[Tensor, Tensor]:
    """Returns mean and deviation of each channel over the steps of all clips in all views, float64 `[C]` on the device.

    `rows_of` makes the rows of a batch, `[T, B, C]`, that are counted, if not its steps. One pass over the bank, which
    must not be empty. The deviation of a channel that is constant is exactly 0.
    """
    rows = 0
    first_C = sum_C = squares_C = torch.zeros((), dtype=torch.float64, device=bank.label_N.device)
    for _, _, x_TBC in whole_bank(bank):
        x_RC = rows_of(x_TBC).double()
        # Sums of differences from one of the values lose no digits where a channel's mean is far from 0.
        first_C = first_C if rows else x_RC[0].clone()
        x_RC -= first_C
        sum_C, squares_C, rows = sum_C + x_RC.sum(dim=0), squares_C + x_RC.square().sum(dim=0), rows + len(x_RC)
    return first_C + sum_C / rows, (squares_C / rows - (sum_C / rows) ** 2).clamp(min=0).sqrt()


def from_memory(features_VFC: Tensor, frames_NT: NDArray[np.int64]) -> ReadBatch:
    """Returns a function that reads batches from features in main memory, for a device with less memory."""
    return partial(_gather, features_VFC, torch.from_numpy(frames_NT))


def from_cache(
    cache: FeatureCache,
    level: Level,
    clips: ClipTable,
    videos: Sequence[str],
    offsets: NDArray[np.int64],
    views: Sequence[int],
) -> ReadBatch:
    """Returns a function that reads batches from the cache's shards, which verify each video when it is first read.

    Video `i` has the frames `[offsets[i], offsets[i + 1])`, as clips count them; view `v` is view `views[v]`.
    """

    def read(clip_B: Tensor, view_B: Tensor) -> Tensor:
        x_TBC = np.empty((clips.frames_NT.shape[1], len(clip_B), cache.widths[level]), dtype=np.float16)
        for b, (clip, view) in enumerate(zip(clip_B.tolist(), view_B.tolist(), strict=True)):
            video = int(np.searchsorted(offsets, clips.frames_NT[clip][0], side="right")) - 1
            frames_T = clips.frames_NT[clip] - offsets[video]
            start, stop = int(frames_T.min()), int(frames_T.max()) + 1
            span_FC = cache.features(videos[video], level, views[view], start, stop)
            x_TBC[:, b] = span_FC[frames_T - start]
        return torch.from_numpy(x_TBC)

    return read


def load_bank(
    cache: FeatureCache,
    level: Level,
    samples: Sequence[Sample],
    rule: ClipRule,
    device: torch.device,
    views: Sequence[int] | None = None,
) -> ClipBank:
    """Returns the clips of labelled `samples`, in all views or in those that are named.

    Features are held on the device if they fit, else in main memory, else read from the cache batch by batch. Raises
    `TrainingError` if features are NaN or Inf, or if a sample has no label.
    """
    views = range(len(cache.views)) if views is None else views
    ids = [sample.id for sample in samples]
    labels = [sample.label for sample in samples if sample.label is not None]
    if len(labels) < len(samples):
        nameless = next(sample.id for sample in samples if sample.label is None)
        raise TrainingError(f"video {nameless!r} is in the split but has no class; give it one, or take it out")
    videos = list(dict.fromkeys(sample.video for sample in samples))
    num_frames = [cache.num_frames(video) for video in videos]
    offsets = np.concatenate([[0], np.cumsum(num_frames)]).astype(np.int64)
    first = dict(zip(videos, offsets.tolist(), strict=False))
    inside = [(first[sample.video], cache.frames_of(sample)) for sample in samples]
    ranges = [range(start + frames.start, start + frames.stop) for start, frames in inside]
    num_bytes = sum(num_frames) * len(views) * cache.widths[level] * 2
    too_large = f"the {level} features ({num_bytes / 2**30:,.1f} GiB) do not fit into"
    if num_bytes > _SHARE * available_bytes():
        say(f"{too_large} memory: they are read from the cache batch by batch")
        clips = cut(ids, labels, ranges, np.concatenate([cache.pts_seconds(video) for video in videos]), rule)
        return StreamedBank(clips, len(views), device, from_cache(cache, level, clips, videos, offsets, views))
    fits = device.type != "cuda" or num_bytes <= _SHARE * torch.cuda.mem_get_info(device)[0]
    loaded = cache.load(level, videos, views=list(views), device=str(device) if fits else "cpu")
    clips = cut(ids, labels, ranges, loaded.pts_seconds, rule)
    check_finite(loaded.features, offsets, videos, level)
    if not fits:
        say(f"{too_large} the device's memory: they stay in main memory")
        return StreamedBank(clips, len(views), device, from_memory(loaded.features, clips.frames_NT))
    return Bank(
        features_VFC=loaded.features,
        frames_NT=torch.from_numpy(clips.frames_NT).to(device),
        label_N=torch.from_numpy(clips.label_N).to(device),
        clips=clips,
    )


def check_finite(features_VFC: Tensor, offsets: NDArray[np.int64], ids: Sequence[str], level: Level) -> None:
    """Raises `TrainingError` with the first video that has NaN or Inf; video `i` has `[offsets[i], offsets[i + 1])`."""
    for first in range(0, features_VFC.shape[1], _CHECKED_AT_ONCE):
        part = features_VFC[:, first : first + _CHECKED_AT_ONCE]
        bad_F = ~torch.isfinite(part).all(dim=2).all(dim=0)
        if bool(bad_F.any()):
            frame = first + int(bad_F.nonzero()[0])
            video = next(index for index, stop in enumerate(offsets[1:]) if frame < stop)
            raise TrainingError(
                f"video {ids[video]!r} has NaN or Inf among its {level} features (frame {frame - offsets[video]}): "
                "extract it again (`mrrn cache verify` and `repair` check all videos)"
            )
