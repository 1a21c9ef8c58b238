"""Makes an autograd function of a recurrence's two kernels.

The outputs are allocated here; a kernel fills them and returns nothing. Letters as in `reference.py`; `S` is `T + 1`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Recurrence = Callable[[Tensor, Tensor | None, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(u [T, B, G, D], x [T, B, D] or None, biases [2, D], c0 [B, D]) -> (h [T, B, D], last state [B, D])."""


Outputs = tuple[Tensor, Tensor]
"""h [T, B, D], and all states [S, B, D], in the dtype of c0: the first is c0, the last one is returned."""

Gradients = tuple[Tensor, Tensor | None, Tensor, Tensor]
"""Of u, of x (None if there is none), of the biases and of c0."""


def make_recurrence(forward_kernel: Callable[..., None], backward_kernel: Callable[..., None]) -> Recurrence:
    """Returns a function with the contract of `reference.recurrence`, differentiable once.

    The forward kernel gets its inputs and `Outputs` to fill; the backward kernel the gradients of `h` and of the last
    state, `u`, `x`, biases, all states as the forward kernel left them, and `Gradients` to fill. Inputs have any
    strides, outputs are contiguous. A compiler of torch's that comes by leaves the kernels as they are.
    """

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any, u_TBGD: Tensor, x_TBD: Tensor | None, bias_2D: Tensor, c0_BD: Tensor
        ) -> tuple[Tensor, Tensor]:
            steps, batch, _, hidden = u_TBGD.shape
            h_TBD = u_TBGD.new_empty(steps, batch, hidden)
            states_SBD = c0_BD.new_empty(steps + 1, batch, hidden)
            forward_kernel(u_TBGD, x_TBD, bias_2D, c0_BD, (h_TBD, states_SBD))
            ctx.save_for_backward(u_TBGD, x_TBD, bias_2D, states_SBD)
            ctx.set_materialize_grads(False)
            return h_TBD, states_SBD[-1]

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, dh_TBD: Tensor | None, dc_BD: Tensor | None) -> tuple[Tensor | None, ...]:
            u_TBGD, x_TBD, bias_2D, states_SBD = ctx.saved_tensors
            if dh_TBD is None:
                dh_TBD = torch.zeros_like(u_TBGD[:, :, 0])
            if dc_BD is None:
                dc_BD = torch.zeros_like(states_SBD[0])
            gradients = (
                torch.empty_like(u_TBGD, memory_format=torch.contiguous_format),
                None if x_TBD is None else torch.empty_like(x_TBD, memory_format=torch.contiguous_format),
                torch.empty_like(bias_2D, memory_format=torch.contiguous_format),
                torch.empty_like(states_SBD[0]),
            )
            backward_kernel(dh_TBD, dc_BD, u_TBGD, x_TBD, bias_2D, states_SBD, gradients)
            return gradients

    recurrence: Recurrence = torch.compiler.disable(Function.apply)
    return recurrence
