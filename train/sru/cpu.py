"""The SRU's recurrence on a processor, forward and backward by hand; plain torch operations, nothing to compile.

What comes from the matrix product is worked through a few steps at a time, so that all intermediates of a block stay in
the processor's cache; only equation 5 and its reverse go step by step, with one operation each. Nothing but the
states is kept for the backward pass beside its inputs: gates and tanh are computed again, which costs less than
keeping them. Letters as in `reference.py`; `A` are the two gates f and r.
"""

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

BLOCK_ELEMENTS = 128 * 1024
"""Elements of one array in a block of steps: half a megabyte in float32, about ten of which fit the last cache."""


def recurrence(u_TBGD: Tensor, x_TBD: Tensor | None, bias_2D: Tensor, c0_BD: Tensor) -> tuple[Tensor, Tensor]:
    """The same as `reference.recurrence`: hidden states `[T, B, D]` and the last state `[B, D]`."""
    h_TBD, c_BD, _ = forward(u_TBGD, x_TBD, bias_2D, c0_BD)
    return h_TBD, c_BD


@custom_op("mrrn::sru_cpu", mutates_args=(), device_types="cpu")
def forward(u_TBGD: Tensor, x_TBD: Tensor | None, bias_2D: Tensor, c0_BD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Equations 3 to 6; also returns all states, `c0` in front, `[T + 1, B, D]`, which the backward pass needs."""
    h_TBD, c_BD, states_SBD = _outputs(u_TBGD, x_TBD, bias_2D, c0_BD)
    states_SBD[0] = c0_BD
    for steps in _blocks(u_TBGD):
        u, c = u_TBGD[steps], states_SBD[steps.start + 1 : steps.stop + 1]
        f, r = _gates(u, bias_2D, c0_BD.dtype).unbind(2)
        x_tilde = u[:, :, 0].to(c0_BD.dtype)
        for i in range(len(u)):  # (5), as x~ + f (c - x~)
            torch.lerp(x_tilde[i], states_SBD[steps.start + i], f[i], out=c[i])
        h_TBD[steps] = torch.lerp(_highway(u, x_TBD, steps).to(c0_BD.dtype), _tanh(c), r)  # (6), as x + r (g - x)
    c_BD.copy_(states_SBD[-1])
    return h_TBD, c_BD, states_SBD


@forward.register_fake
def _outputs(u_TBGD: Tensor, x_TBD: Tensor | None, bias_2D: Tensor, c0_BD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    steps, batch, _, hidden = u_TBGD.shape
    states_SBD = c0_BD.new_empty(steps + 1, batch, hidden)
    return u_TBGD.new_empty(steps, batch, hidden), c0_BD.new_empty(batch, hidden), states_SBD


@custom_op("mrrn::sru_cpu_backward", mutates_args=(), device_types="cpu")
def backward(
    dh_TBD: Tensor, dc_BD: Tensor, u_TBGD: Tensor, x_TBD: Tensor | None, bias_2D: Tensor, states_SBD: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `u`, `x` (empty where there is none), biases and `c0`, from those of `h` and of the last state."""
    du_TBGD, dx_TBD, dbias_2D, dc0_BD = _gradients(dh_TBD, dc_BD, u_TBGD, x_TBD, bias_2D, states_SBD)
    state, carry_BD = states_SBD.dtype, dc_BD.to(states_SBD.dtype, copy=True)
    dbias_sum_AD = states_SBD.new_zeros(bias_2D.shape)
    for steps in reversed(_blocks(u_TBGD)):
        u, dh = u_TBGD[steps], dh_TBD[steps].to(state)
        c, c_before = states_SBD[steps.start + 1 : steps.stop + 1], states_SBD[steps]
        f, r = _gates(u, bias_2D, state).unbind(2)
        du = du_TBGD[steps] if du_TBGD.dtype == state else torch.empty_like(u, dtype=state)
        g = _tanh(c)

        dg = dh * r
        dhighway = du[:, :, 3] if x_TBD is None else dx_TBD[steps]
        dhighway.copy_(dh - dg)
        dr = (g - _highway(u, x_TBD, steps)).mul_(dh)
        torch.ops.aten.sigmoid_backward.grad_input(dr, r, grad_input=du[:, :, 2])

        dc = torch.ops.aten.tanh_backward(dg, g)
        for i in reversed(range(len(u))):  # (5) reversed: dc_t gathers f_{t+1} dc_{t+1}
            dc[i] += carry_BD
            torch.mul(dc[i], f[i], out=carry_BD)
        torch.addcmul(dc, dc, f, value=-1, out=du[:, :, 0])
        df = (c_before - u[:, :, 0]).mul_(dc)
        torch.ops.aten.sigmoid_backward.grad_input(df, f, grad_input=du[:, :, 1])

        dbias_sum_AD += du[:, :, 1:3].sum((0, 1))
        if du_TBGD.dtype != state:
            du_TBGD[steps] = du
    dbias_2D.copy_(dbias_sum_AD)
    dc0_BD.copy_(carry_BD)
    return du_TBGD, dx_TBD, dbias_2D, dc0_BD


@backward.register_fake
def _gradients(
    dh_TBD: Tensor, dc_BD: Tensor, u_TBGD: Tensor, x_TBD: Tensor | None, bias_2D: Tensor, states_SBD: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx_TBD = u_TBGD.new_empty(0) if x_TBD is None else x_TBD.new_empty(x_TBD.shape)
    return u_TBGD.new_empty(u_TBGD.shape), dx_TBD, bias_2D.new_empty(bias_2D.shape), states_SBD.new_empty(dc_BD.shape)


def _blocks(u_TBGD: Tensor) -> list[slice]:
    steps, batch, _, hidden = u_TBGD.shape
    size = max(1, BLOCK_ELEMENTS // (batch * hidden))
    return [slice(start, min(start + size, steps)) for start in range(0, steps, size)]


def _gates(u_TBGD: Tensor, bias_2D: Tensor, dtype: torch.dtype) -> Tensor:
    """Equations 3 and 4: both gates, `[T, B, 2, D]`."""
    return torch.add(u_TBGD[:, :, 1:3].to(dtype), bias_2D.to(dtype)).sigmoid_()


def _tanh(c: Tensor) -> Tensor:
    """tanh(c) as 2 sigmoid(2c) - 1: a third of torch.tanh's time, and off by one rounding of numbers near 1."""
    return torch.mul(c, 2).sigmoid_().mul_(2).sub_(1)


def _highway(u_TBGD: Tensor, x_TBD: Tensor | None, steps: slice) -> Tensor:
    return u_TBGD[:, :, 3] if x_TBD is None else x_TBD[steps]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    u_TBGD, x_TBD, bias_2D, _ = inputs
    ctx.save_for_backward(u_TBGD, x_TBD, bias_2D, output[2])
    ctx.mark_non_differentiable(output[2])


def _differentiate(ctx: Any, dh_TBD: Tensor, dc_BD: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    u_TBGD, x_TBD, bias_2D, states_SBD = ctx.saved_tensors
    du_TBGD, dx_TBD, dbias_2D, dc0_BD = backward(dh_TBD, dc_BD, u_TBGD, x_TBD, bias_2D, states_SBD)
    return du_TBGD, None if x_TBD is None else dx_TBD, dbias_2D, dc0_BD


forward.register_autograd(_differentiate, setup_context=_save)
