"""Heads: from the features of a clip to class logits.

Shapes: T steps, B batch, C channels, D units of the top layer, K classes.
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from cache.common.errors import TrainingError
from train.recipes import AVERAGING, Cell, Pool, Recipe, check_pool
from train.sru import SRU

NEVER = 30.0
"""How much lower than all others the logit of a class without training samples starts: e^-30 of their probability."""


class SruCell(nn.Module):
    """Stacked SRU with tanh on top (section 4.2: "on the top of stacked SRUs"): x [T, B, C] -> [T, B, D]."""

    def __init__(self, channels: int, recipe: Recipe) -> None:
        super().__init__()
        self.width = recipe.hidden
        self.sru = SRU(channels, recipe.hidden, recipe.layers, recipe.dropout, recipe.variational_dropout)

    def forward(self, x_TBC: Tensor) -> Tensor:
        h_TBD, _ = self.sru(x_TBC)
        return torch.tanh(h_TBD)


class GatedCell(nn.Module):
    """Stacked nn.LSTM or nn.GRU with tanh on top, the SRU's dropout and initialisation: x [T, B, C] -> [T, B, D]."""

    def __init__(self, channels: int, recipe: Recipe, layer: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.width = recipe.hidden
        self.variational_dropout, self.dropout = recipe.variational_dropout, recipe.dropout
        widths = [channels] + [recipe.hidden] * (recipe.layers - 1)
        self.stack = nn.ModuleList(layer(width, recipe.hidden) for width in widths)
        for name, parameter in self.stack.named_parameters():
            if "weight" in name:
                for gate in parameter.data.split(recipe.hidden):
                    nn.init.orthogonal_(gate)
            else:
                nn.init.zeros_(parameter)

    def forward(self, x_TBC: Tensor) -> Tensor:
        h = x_TBC
        for index, layer in enumerate(self.stack):
            if index and self.dropout:
                h = nn.functional.dropout(h, self.dropout, self.training)
            if self.variational_dropout:
                mask = torch.ones_like(h[:1])
                h = h * nn.functional.dropout(mask, self.variational_dropout, self.training)
            # Under autocast cuDNN computes in float16, whatever was asked for, in which small gradients vanish.
            with torch.autocast("cuda", enabled=False) if h.is_cuda else nullcontext():
                h, _ = layer(h)
        return torch.tanh(h)


class MeanCell(nn.Module):
    """No recurrence: the mean of the frames as the only step, x [T, B, C] -> [1, B, C].

    Its input dropout is that of the recurrent cells, so that only the recurrence differs.
    """

    def __init__(self, channels: int, recipe: Recipe) -> None:
        super().__init__()
        self.width = channels
        self.dropout = recipe.variational_dropout

    def forward(self, x_TBC: Tensor) -> Tensor:
        return nn.functional.dropout(x_TBC.mean(dim=0, keepdim=True), self.dropout, self.training)


_CELLS: dict[Cell, Callable[[int, Recipe], nn.Module]] = {
    "sru": SruCell,
    "lstm": lambda channels, recipe: GatedCell(channels, recipe, nn.LSTM),
    "gru": lambda channels, recipe: GatedCell(channels, recipe, nn.GRU),
    "mean": MeanCell,
    "linear": MeanCell,  # fitted by train/linear.py, which has no dropout
}


def scale_of(mean_C: Tensor, deviation_C: Tensor) -> Tensor:
    """Returns what a channel's difference from its mean is multiplied by: 1 / deviation, 0 for a constant channel.

    A channel that varies by no more than float16 rounds its mean counts as constant: divided by such a deviation it
    would be noise, and any other value in it would outweigh all other channels.
    """
    constant_C = deviation_C <= mean_C.abs() * torch.finfo(torch.float16).eps
    return torch.where(constant_C, 0, 1 / deviation_C)


def moments(x_TBC: Tensor) -> Tensor:
    """Returns what each channel of a clip does over time, `[B, 4 * C]`: mean, deviation, mean absolute step, slope.

    The slope is the mean of the values times their place in time, from -1 to 1: it tells the order of events.
    """
    steps = len(x_TBC)
    mean_BC = x_TBC.mean(dim=0)
    deviation_BC = (x_TBC - mean_BC).square().mean(dim=0).sqrt()
    step_BC = (x_TBC[1:] - x_TBC[:-1]).abs().sum(dim=0) / max(steps - 1, 1)
    time_T = (2 * torch.arange(steps, device=x_TBC.device) - (steps - 1)) / max(steps - 1, 1)
    return torch.cat([mean_BC, deviation_BC, step_BC, (time_T[:, None, None] * x_TBC).mean(dim=0)], dim=1)


class MomentShortcut(nn.Module):
    """A linear layer on the standardised moments of raw features: x [T, B, C] -> logits [B, K]. Starts at nothing."""

    mean_M: Tensor
    """float32: subtracted from the moments."""
    scale_M: Tensor
    """float32: what the difference is multiplied by."""

    def __init__(self, channels: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(4 * channels, classes, bias=False)
        nn.init.zeros_(self.linear.weight)
        self.register_buffer("mean_M", torch.zeros(4 * channels))
        self.register_buffer("scale_M", torch.ones(4 * channels))
        self.dropout = dropout

    def forward(self, x_TBC: Tensor) -> Tensor:
        moment_BM = (moments(x_TBC) - self.mean_M) * self.scale_M
        logits_BK: Tensor = self.linear(nn.functional.dropout(moment_BM, self.dropout, self.training))
        return logits_BK

    def standardise_by(self, mean_M: Tensor, deviation_M: Tensor) -> None:
        """Set the statistics of the moments: float64, on any device."""
        # What float16 rounds depends on the channel's own mean, also where the moment's is near 0, as a slope's.
        own_M = mean_M[: len(mean_M) // 4].repeat(4)
        self.mean_M.copy_(mean_M)
        self.scale_M.copy_(scale_of(torch.maximum(mean_M.abs(), own_M.abs()), deviation_M))


class Head(nn.Module):
    """A cell over time, a linear layer to K classes at each step, and pooling over time. Returns logits, no softmax.

    A head of standardised inputs holds their statistics (`standardise_by`) and takes raw features like any other.
    """

    mean_C: Tensor
    """float32: subtracted from the features. Only in heads of standardised inputs, as `scale_C`."""
    scale_C: Tensor
    """float32: what the difference is multiplied by."""

    def __init__(self, channels: int, classes: int, recipe: Recipe, pool: Pool = "mean") -> None:
        """The cell is the recipe's. Raises `TrainingError` if `pool` does not go with it, or without classes."""
        super().__init__()
        if classes < 1:
            raise TrainingError("a head without classes; it needs at least one")
        check_pool(recipe.cell, pool)
        self.classes, self.pool = classes, pool
        self.standardised = recipe.inputs == "standardised" or recipe.cell == "linear"
        if self.standardised:
            self.register_buffer("mean_C", torch.zeros(channels))
            self.register_buffer("scale_C", torch.ones(channels))
        self.cell = _CELLS[recipe.cell](channels, recipe)
        width = int(self.cell.width)  # type: ignore[arg-type]
        self.linear = nn.Linear(width, classes)
        self.attention = nn.Linear(width, 1) if pool == "attention" else None
        self.input_dropout = recipe.input_dropout
        self.shortcut: MomentShortcut | nn.Linear | None = None
        if recipe.shortcut == "moments" and recipe.cell != "linear":
            self.shortcut = MomentShortcut(channels, classes, recipe.input_dropout)
        elif recipe.shortcut == "mean" and recipe.cell not in AVERAGING:
            self.shortcut = nn.Linear(channels, classes, bias=False)
            nn.init.zeros_(self.shortcut.weight)

    def forward(self, x_TBC: Tensor) -> Tensor:
        """Returns the logits `[B, K]` of the clips `x_TBC`, float."""
        raw_TBC = x_TBC
        if self.standardised:
            x_TBC = self.standardise(x_TBC)
        if self.training and self.input_dropout:
            x_TBC = x_TBC * nn.functional.dropout(torch.ones_like(x_TBC[:1]), self.input_dropout)
        logits_BK = self._pooled(self.cell(x_TBC))
        if self.shortcut is None:
            return logits_BK
        past = raw_TBC if isinstance(self.shortcut, MomentShortcut) else x_TBC.mean(dim=0)
        return logits_BK + self.shortcut(past)

    def _pooled(self, h_TBD: Tensor) -> Tensor:
        """The logits of the cell's outputs, one of each clip."""
        logits_TBK: Tensor = self.linear(h_TBD)
        if self.attention is not None:
            share_TB1 = torch.softmax(self.attention(h_TBD), dim=0)
            return (share_TB1 * logits_TBK).sum(dim=0)
        if self.pool == "max":
            return logits_TBK.amax(dim=0)  # equation 9 before its softmax
        return logits_TBK.mean(dim=0)  # equation 8 before its softmax

    def standardise_by(self, mean_C: Tensor, deviation_C: Tensor) -> None:
        """Set the statistics of the features: float64, on any device."""
        self.mean_C.copy_(mean_C)
        self.scale_C.copy_(scale_of(mean_C, deviation_C))

    def standardise(self, x: Tensor) -> Tensor:
        """Returns features `[..., C]` minus each channel's mean, times its scale."""
        return (x - self.mean_C) * self.scale_C
