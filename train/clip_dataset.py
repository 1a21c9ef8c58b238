"""Clips of a cache as a torch data set, for training loops of one's own.

Shapes: N clips, T steps, F frames, C channels.
"""

import numpy as np
import torch
from torch import Tensor

from cache.clips import ClipRule
from cache.dataset import Half
from cache.fingerprint import Level
from cache.store import FeatureCache
from train.recipes import recipes_for


class ClipDataset(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """The clips of one half of a split: features float32 `[T, C]` of one level, and the index of the class.

    Goes with a `DataLoader` and its workers, forked or spawned. Features are read from the cache when they are asked
    for; each video is verified when a process first reads it.
    """

    def __init__(
        self,
        cache: FeatureCache,
        level: Level,
        half: Half = "train",
        *,
        split: int = 1,
        view: int = 0,
        clips: str = "",
    ) -> None:
        """`clips` changes the clip rule that `mrrn train` has for this dataset, as its option `--clips` does.

        Raises `CacheError` if videos are still pending, or if there is no such level or view.
        """
        cache.check_request(level, (view,))
        cache.require_finished()
        self.cache, self.level, self.view = cache, level, view
        usual = recipes_for(cache.dataset.source)["small"].clips
        self.rule: ClipRule = usual.changed(clips) if clips else usual
        listed = cache.dataset.half(split, half)
        self.samples = [each for each in listed if each.label is not None and cache.frames_of(each)]
        """Samples with a class and features, in the order of their clips."""
        parts = [self._clips(index) for index in range(len(self.samples))]
        self.frames_NT = np.concatenate([np.empty((0, self.rule.length), dtype=np.int64), *parts])
        """Frame indices of each clip, counted in its video."""
        self.sample_N = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        """Index of each clip's sample in `samples`."""

    def _clips(self, index: int) -> np.ndarray:
        sample = self.samples[index]
        frames = self.cache.frames_of(sample)
        return self.rule.frames(self.cache.pts_seconds(sample.video)[frames.start : frames.stop]) + frames.start

    def __len__(self) -> int:
        return len(self.frames_NT)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        frames_T, sample = self.frames_NT[index], self.samples[int(self.sample_N[index])]
        first, stop = int(frames_T.min()), int(frames_T.max()) + 1
        span_FC = self.cache.features(sample.video, self.level, self.view, first, stop)
        assert sample.label is not None
        return torch.from_numpy(span_FC[frames_T - first].astype(np.float32)), sample.label
