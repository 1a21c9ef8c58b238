"""Makes torch operators of a recurrence's two kernels, so that autograd, torch.compile and CUDA graphs understand them.

The outputs are allocated here; a kernel fills them and returns nothing. Letters as in `reference.py`; `S` is `T + 1`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

Recurrence = Callable[[Tensor, Tensor | None, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(u [T, B, G, D], x [T, B, D] or None, biases [2, D], c0 [B, D]) -> (h [T, B, D], last state [B, D])."""


Outputs = tuple[Tensor, Tensor, Tensor]
"""h [T, B, D], last state [B, D], all states [S, B, D] for the backward pass; states have the dtype of c0."""

Gradients = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of u, of x (empty if there is none), of the biases and of c0."""


def make_operator(name: str, forward_kernel: Callable[..., None], backward_kernel: Callable[..., None]) -> Recurrence:
    """Register `mrrn::sru_<name>` and its backward. Returns a function with the contract of `reference.recurrence`.

    The forward kernel gets the operator's inputs and `Outputs` to fill; the backward kernel the gradients of `h` and of
    the last state, `u`, `x`, biases, all states as the forward kernel left them, and `Gradients` to fill. Inputs have
    any strides, outputs are contiguous.
    """

    @custom_op(f"mrrn::sru_{name}", mutates_args=())
    def forward(u_TBGD: Tensor, x_TBD: Tensor | None, bias_2D: Tensor, c0_BD: Tensor) -> Outputs:
        outputs = _outputs(u_TBGD, x_TBD, bias_2D, c0_BD)
        forward_kernel(u_TBGD, x_TBD, bias_2D, c0_BD, outputs)
        return outputs

    @custom_op(f"mrrn::sru_{name}_backward", mutates_args=())
    def backward(
        dh_TBD: Tensor, dc_BD: Tensor, u_TBGD: Tensor, x_TBD: Tensor | None, bias_2D: Tensor, states_SBD: Tensor
    ) -> Gradients:
        gradients = _gradients(dh_TBD, dc_BD, u_TBGD, x_TBD, bias_2D, states_SBD)
        backward_kernel(dh_TBD, dc_BD, u_TBGD, x_TBD, bias_2D, states_SBD, gradients)
        return gradients

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        u_TBGD, x_TBD, bias_2D, _ = inputs
        ctx.save_for_backward(u_TBGD, x_TBD, bias_2D, output[2])
        ctx.mark_non_differentiable(output[2])
        ctx.set_materialize_grads(False)  # otherwise torch makes zeros as large as all states

    def differentiate(ctx: Any, dh_TBD: Tensor | None, dc_BD: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        u_TBGD, x_TBD, bias_2D, states_SBD = ctx.saved_tensors
        if dh_TBD is None:
            dh_TBD = torch.zeros_like(u_TBGD[:, :, 0])
        if dc_BD is None:
            dc_BD = torch.zeros_like(states_SBD[0])
        du, dx, dbias, dc0 = backward(dh_TBD, dc_BD, u_TBGD, x_TBD, bias_2D, states_SBD)
        return du, None if x_TBD is None else dx, dbias, dc0

    forward.register_fake(_outputs)
    backward.register_fake(_gradients)
    forward.register_autograd(differentiate, setup_context=save)

    def recurrence(u_TBGD: Tensor, x_TBD: Tensor | None, bias_2D: Tensor, c0_BD: Tensor) -> tuple[Tensor, Tensor]:
        h_TBD, c_BD, _ = forward(u_TBGD, x_TBD, bias_2D, c0_BD)
        return h_TBD, c_BD

    return recurrence


def _outputs(u_TBGD: Tensor, x_TBD: Tensor | None, bias_2D: Tensor, c0_BD: Tensor) -> Outputs:
    """Empty tensors for the hidden states, the last state, and all states, which autograd does not see."""
    steps, batch, _, hidden = u_TBGD.shape
    states_SBD = c0_BD.new_empty(steps + 1, batch, hidden)
    return u_TBGD.new_empty(steps, batch, hidden), c0_BD.new_empty(batch, hidden), states_SBD


def _gradients(
    dh_TBD: Tensor, dc_BD: Tensor, u_TBGD: Tensor, x_TBD: Tensor | None, bias_2D: Tensor, states_SBD: Tensor
) -> Gradients:
    """Empty tensors for the gradients of u, x, biases and c0. Without x, dx has size 0, as None cannot be returned."""
    dx_TBD = u_TBGD.new_empty(0) if x_TBD is None else x_TBD.new_empty(x_TBD.shape)
    return u_TBGD.new_empty(u_TBGD.shape), dx_TBD, bias_2D.new_empty(bias_2D.shape), states_SBD.new_empty(dc_BD.shape)
