"""Heads: from the features of a clip to class logits.

Shapes: T steps, B batch, C channels, D units of the top layer, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cache.common.errors import TrainingError
from train.recipes import Cell, Pool
from train.sru import SRU


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """How a head is built."""

    channels: int
    """Width C of the features."""
    classes: int
    """Number K of classes."""
    cell: Cell = "sru"
    """The network over time."""
    hidden: int = 1024
    """Units D of each recurrent layer."""
    layers: int = 3
    """Recurrent layers."""
    pool: Pool = "mean"
    """How the logits of the steps become those of the clip."""
    variational_dropout: float = 0.5
    """Dropout on the inputs of each layer's linear transformations, one mask for all steps."""
    dropout: float = 0.0
    """Dropout between layers."""

    def __post_init__(self) -> None:
        if self.classes < 1:
            raise TrainingError("a head without classes; it needs at least one")
        if self.cell == "mean" and self.pool != "mean":
            raise TrainingError(f"cell mean averages over time itself; pool is {self.pool!r}: use --pool mean")


class SruCell(nn.Module):
    """Stacked SRU with tanh on top: x [T, B, C] -> [T, B, D]."""

    def __init__(self, settings: HeadSettings) -> None:
        super().__init__()
        self.width = settings.hidden
        self.sru = SRU(
            settings.channels,
            settings.hidden,
            num_layers=settings.layers,
            dropout=settings.dropout,
            variational_dropout=settings.variational_dropout,
        )

    def forward(self, x_TBC: Tensor) -> Tensor:
        """The top layer's outputs through tanh (section 4.2: "on the top of stacked SRUs")."""
        h_TBD, _ = self.sru(x_TBC)
        return torch.tanh(h_TBD)


class GatedCell(nn.Module):
    """Stacked nn.LSTM or nn.GRU with the SRU's dropout and initialisation: x [T, B, C] -> [T, B, D]."""

    def __init__(self, settings: HeadSettings, layer: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.width = settings.hidden
        self.variational_dropout, self.dropout = settings.variational_dropout, settings.dropout
        widths = [settings.channels] + [settings.hidden] * (settings.layers - 1)
        self.stack = nn.ModuleList(layer(width, settings.hidden) for width in widths)
        for name, parameter in self.stack.named_parameters():
            if "weight" in name:
                for gate in parameter.data.split(settings.hidden):
                    nn.init.orthogonal_(gate)
            else:
                nn.init.zeros_(parameter)

    def forward(self, x_TBC: Tensor) -> Tensor:
        """The top layer's outputs through tanh."""
        h = x_TBC
        for index, layer in enumerate(self.stack):
            if index and self.dropout:
                h = nn.functional.dropout(h, self.dropout, self.training)
            if self.variational_dropout:
                mask = torch.ones_like(h[:1])
                h = h * nn.functional.dropout(mask, self.variational_dropout, self.training)
            h, _ = layer(h)
        return torch.tanh(h)


class MeanCell(nn.Module):
    """No recurrence: the mean of the frames as the only step, x [T, B, C] -> [1, B, C]."""

    def __init__(self, settings: HeadSettings) -> None:
        super().__init__()
        self.width = settings.channels
        self.dropout = settings.variational_dropout

    def forward(self, x_TBC: Tensor) -> Tensor:
        """The mean over time, with the input dropout of the recurrent cells, so that only the recurrence differs."""
        return nn.functional.dropout(x_TBC.mean(dim=0, keepdim=True), self.dropout, self.training)


_CELLS: dict[Cell, Callable[[HeadSettings], nn.Module]] = {
    "sru": SruCell,
    "lstm": lambda settings: GatedCell(settings, nn.LSTM),
    "gru": lambda settings: GatedCell(settings, nn.GRU),
    "mean": MeanCell,
}


class Head(nn.Module):
    """A cell over time, a linear layer to K classes at each step, and pooling over time. Returns logits, no softmax."""

    def __init__(self, settings: HeadSettings) -> None:
        super().__init__()
        self.settings = settings
        self.cell = _CELLS[settings.cell](settings)
        width = int(self.cell.width)  # type: ignore[arg-type]
        self.linear = nn.Linear(width, settings.classes)
        self.attention = nn.Linear(width, 1) if settings.pool == "attention" else None

    def forward(self, x_TBC: Tensor) -> Tensor:
        """Returns the logits `[B, K]` of the clips `x_TBC`, float."""
        h_TBD = self.cell(x_TBC)
        logits_TBK: Tensor = self.linear(h_TBD)
        if self.attention is not None:
            share_TB1 = torch.softmax(self.attention(h_TBD), dim=0)
            return (share_TB1 * logits_TBK).sum(dim=0)
        if self.settings.pool == "max":
            return logits_TBK.amax(dim=0)  # equation 9 before its softmax
        return logits_TBK.mean(dim=0)  # equation 8 before its softmax
