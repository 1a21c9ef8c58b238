"""Makes torch operators of a recurrence's two kernels, so that autograd, torch.compile and CUDA graphs understand them.

The outputs are allocated here; a kernel fills them and returns nothing. Letters as in `reference.py`; `S` is `T + 1`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

Recurrence = Callable[[Tensor, Tensor | None, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(u [T, B, G, D], x [T, B, D] or None, biases [2, D], c0 [B, D]) -> (h [T, B, D], last state [B, D])."""


@dataclass(frozen=True)
class Forward:
    """What a forward kernel reads, and the outputs that it fills. Inputs have any strides; outputs are contiguous."""

    u_TBGD: Tensor
    """The G transformed inputs: x~, f and r before bias and sigmoid, and the highway term if G is 4."""
    x_TBD: Tensor | None
    """The input itself, for the highway term, if G is 3; else None."""
    bias_2D: Tensor
    """Biases of f and r."""
    c0_BD: Tensor
    """The state before the first step; its dtype is that of all states."""
    h_TBD: Tensor
    """Output: hidden states."""
    last_BD: Tensor
    """Output: the last state."""
    states_SBD: Tensor
    """Output: all states, the initial one first, for the backward pass."""


@dataclass(frozen=True)
class Backward:
    """Inputs of a backward kernel, and the gradients that it fills; otherwise as `Forward`."""

    dh_TBD: Tensor
    """Gradient of the hidden states."""
    dlast_BD: Tensor
    """Gradient of the last state."""
    u_TBGD: Tensor
    x_TBD: Tensor | None
    bias_2D: Tensor
    states_SBD: Tensor
    """All states, as the forward kernel left them."""
    du_TBGD: Tensor
    """Output."""
    dx_TBD: Tensor | None
    """Output, if there is an x."""
    dbias_2D: Tensor
    """Output."""
    dc0_BD: Tensor
    """Output: gradient of the initial state."""


def make_operator(
    name: str, forward_kernel: Callable[[Forward], None], backward_kernel: Callable[[Backward], None]
) -> Recurrence:
    """Register `mrrn::sru_<name>` and its backward. Returns a function with the contract of `reference.recurrence`."""

    @custom_op(f"mrrn::sru_{name}", mutates_args=())
    def forward(u_TBGD: Tensor, x_TBD: Tensor | None, bias_2D: Tensor, c0_BD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        outputs = _outputs(u_TBGD, x_TBD, bias_2D, c0_BD)
        forward_kernel(Forward(u_TBGD, x_TBD, bias_2D, c0_BD, *outputs))
        return outputs

    @custom_op(f"mrrn::sru_{name}_backward", mutates_args=())
    def backward(
        dh_TBD: Tensor, dc_BD: Tensor, u_TBGD: Tensor, x_TBD: Tensor | None, bias_2D: Tensor, states_SBD: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        du, dx, dbias, dc0 = _gradients(dh_TBD, dc_BD, u_TBGD, x_TBD, bias_2D, states_SBD)
        outputs = (du, None if x_TBD is None else dx, dbias, dc0)
        backward_kernel(Backward(dh_TBD, dc_BD, u_TBGD, x_TBD, bias_2D, states_SBD, *outputs))
        return du, dx, dbias, dc0

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


def _outputs(u_TBGD: Tensor, x_TBD: Tensor | None, bias_2D: Tensor, c0_BD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Empty tensors for the hidden states, the last state, and all states, which autograd does not see."""
    steps, batch, _, hidden = u_TBGD.shape
    states_SBD = c0_BD.new_empty(steps + 1, batch, hidden)
    return u_TBGD.new_empty(steps, batch, hidden), c0_BD.new_empty(batch, hidden), states_SBD


def _gradients(
    dh_TBD: Tensor, dc_BD: Tensor, u_TBGD: Tensor, x_TBD: Tensor | None, bias_2D: Tensor, states_SBD: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Empty tensors for the gradients of u, x, biases and c0. Without x, dx has size 0, as None cannot be returned."""
    dx_TBD = u_TBGD.new_empty(0) if x_TBD is None else x_TBD.new_empty(x_TBD.shape)
    return u_TBGD.new_empty(u_TBGD.shape), dx_TBD, bias_2D.new_empty(bias_2D.shape), states_SBD.new_empty(dc_BD.shape)
