"""The usual way to train on features, as a contestant for `benchmarks/train.py`: a DataLoader, nn.LSTM, a plain loop.

Shapes: T steps, B batch, C channels, K classes.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cache.fingerprint import CHANNELS, Level
from train.clips import Bank
from train.config import RunConfig
from train.recipes import Precision
from train.split import Split

WORKERS = 2

TakeSteps = Callable[[int], None]
"""Takes the given number of training steps."""


class PlainClips(Dataset):
    """Clips from an HDF5 file with a dataset per video, which each worker opens."""

    def __init__(self, path: Path, bank: Bank) -> None:
        self.path, self.clips = path, bank.clips
        firsts = np.searchsorted(bank.clips.sample_N, np.arange(len(bank.clips.sample_ids)))
        self.first_frame = bank.clips.frames_NT[firsts, 0]
        self.file: h5py.File | None = None

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, clip: int) -> tuple[Tensor, int]:
        """Features `[T, C]`, float32, and label of one clip."""
        self.file = self.file or h5py.File(self.path)
        video = int(self.clips.sample_N[clip])
        frames_T = self.clips.frames_NT[clip] - self.first_frame[video]
        start, stop = frames_T.min(), frames_T.max() + 1
        clip_TC = self.file[str(video)][start:stop][frames_T - start]
        return torch.from_numpy(clip_TC.astype(np.float32)), int(self.clips.label_N[clip])


def write_plain_file(path: Path, split: Split, level: Level) -> None:
    """Write the training videos' features, a dataset for each."""
    with h5py.File(path, "w") as file:
        for index, video in enumerate(split.training):
            file[str(index)] = split.cache.features(video.id, level)


def batches(clips: PlainClips, batch: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless shuffled batches: features `[T, B, C]` and labels `[B]`, on the device."""
    loader = DataLoader(
        clips, batch, shuffle=True, num_workers=WORKERS, pin_memory=device.type == "cuda", drop_last=True
    )
    while True:
        for x_BTC, label_B in loader:
            yield x_BTC.to(device).transpose(0, 1), label_B.to(device)


class PlainLSTM(nn.Module):
    """nn.LSTM, tanh, a linear layer at each step, mean over time."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        recipe = config.recipe
        self.lstm = nn.LSTM(CHANNELS[config.level], recipe.hidden, recipe.layers)
        self.linear = nn.Linear(recipe.hidden, len(config.classes))

    def forward(self, x_TBC: Tensor) -> Tensor:
        """Logits `[B, K]`."""
        logits: Tensor = self.linear(torch.tanh(self.lstm(x_TBC)[0])).mean(dim=0)
        return logits


def plain_loop(
    head: nn.Module, source: Iterator[tuple[Tensor, Tensor]], fused: bool, precision: Precision = "fp32"
) -> TakeSteps:
    """The usual loop: batch, forward, cross-entropy, backward, Adam, loss.item()."""
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-5, fused=fused)
    head.train()

    def take(steps: int) -> None:
        for _ in range(steps):
            x_TBC, label_B = next(source)
            with torch.autocast(x_TBC.device.type, torch.bfloat16, enabled=precision == "bf16"):
                logits_BK = head(x_TBC)
            loss = nn.functional.cross_entropy(logits_BK.float(), label_B)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()

    return take
