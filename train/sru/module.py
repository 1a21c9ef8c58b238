"""The SRU as a torch module: parameters, dropout, layers. The numbers come from a backend (`backends.py`).

Letters as in `reference.py`: `T` steps, `B` sequences, `C` input channels, `D` hidden units, `G` transformations.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cache.common.errors import TrainingError
from train.sru import backends


class SRU(nn.Module):
    """Stacked Simple Recurrent Units, the paper's equations 2 to 6.

    Weights start orthogonal, gate by gate (the paper, §4.2). Biases, which the paper does not mention, start at zero,
    so that both gates start half open, as in the code of the SRU's authors.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        dropout: float = 0.0,
        variational_dropout: float = 0.0,
        backend: str = "auto",
    ) -> None:
        """`dropout` acts between layers, with a new mask at each step (the paper: 0).

        `variational_dropout` (the paper: 0.5) acts on the input of a layer's linear transformations, with one mask for
        all steps of a sequence, so that the recurrence sees the same channels throughout. The highway term of
        equation 6 sees `x_t` itself: dropout there would zero parts of the layer's output rather than regularise its
        weights. If the widths differ, its projection is one of the transformations and takes the dropped input.

        `backend` is one of `backends.BACKENDS`.
        """
        super().__init__()
        if min(input_size, hidden_size, num_layers) < 1:
            got = f"input_size={input_size}, hidden_size={hidden_size}, num_layers={num_layers}"
            raise TrainingError(f"SRU got {got}: each has to be at least 1")
        if not (0 <= dropout < 1 and 0 <= variational_dropout < 1):
            got = f"dropout={dropout}, variational_dropout={variational_dropout}"
            raise TrainingError(f"SRU got {got}: each is a probability in [0, 1)")
        if backend not in backends.BACKENDS:
            raise TrainingError(f"SRU got backend {backend!r}: choose one of {', '.join(backends.BACKENDS)}")
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.dropout, self.variational_dropout, self.backend = dropout, variational_dropout, backend
        widths = [input_size] + [hidden_size] * (num_layers - 1)
        self.weights = nn.ParameterList(
            torch.empty(3 if width == hidden_size else 4, hidden_size, width) for width in widths
        )
        self.biases = nn.ParameterList(torch.empty(2, hidden_size) for _ in widths)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw orthogonal weights from torch's generator, each stacked matrix by itself; set biases to zero."""
        for weight_GDC, bias_2D in zip(self.weights, self.biases, strict=True):
            for weight_DC in weight_GDC.detach():
                nn.init.orthogonal_(weight_DC)
            nn.init.zeros_(bias_2D)

    def forward(self, x_TBC: Tensor, c0_LBD: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns the last layer's hidden states `[T, B, D]` and every layer's last state `[num_layers, B, D]`.

        `c0` are the states before the first step, zeros by default; pass the last states to continue a sequence.
        States are float32 (float64 for float64 input), also for half-precision input and under autocast; `h` has the
        dtype of the linear transformations.
        """
        self._check(x_TBC, c0_LBD)
        run = backends.recurrence(self.backend, x_TBC.device)
        state = torch.promote_types(x_TBC.dtype, torch.float32)
        if c0_LBD is None:
            c0_LBD = x_TBC.new_zeros(self.num_layers, x_TBC.shape[1], self.hidden_size, dtype=state)
        c0_LBD = c0_LBD.to(state)

        last_BD = []
        for index, (weight_GDC, bias_2D) in enumerate(zip(self.weights, self.biases, strict=True)):
            if index > 0:
                x_TBC = F.dropout(x_TBC, self.dropout, self.training)
            dropped_TBC = x_TBC
            if self.training and self.variational_dropout:
                dropped_TBC = x_TBC * F.dropout(torch.ones_like(x_TBC[0]), self.variational_dropout)
            u_TBGD = F.linear(dropped_TBC, weight_GDC.flatten(0, 1)).unflatten(-1, weight_GDC.shape[:2])
            x_TBC, c_BD = run(u_TBGD, x_TBC if len(weight_GDC) == 3 else None, bias_2D, c0_LBD[index])
            last_BD.append(c_BD)
        return x_TBC, torch.stack(last_BD)

    def _check(self, x_TBC: Tensor, c0_LBD: Tensor | None) -> None:
        if x_TBC.ndim != 3 or x_TBC.shape[2] != self.input_size or x_TBC.numel() == 0:
            wanted = f"[steps, sequences, {self.input_size}], at least one step of one sequence"
            raise TrainingError(f"SRU got input of shape {list(x_TBC.shape)}: expected {wanted}")
        states = (self.num_layers, x_TBC.shape[1], self.hidden_size)
        if c0_LBD is not None and c0_LBD.shape != states:
            raise TrainingError(f"SRU got c0 of shape {list(c0_LBD.shape)}: expected {list(states)}, one state a layer")

    def extra_repr(self) -> str:
        """What `print(module)` shows."""
        return (
            f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, dropout={self.dropout}, "
            f"variational_dropout={self.variational_dropout}, backend={self.backend!r}"
        )
