"""The SRU's recurrence on a processor, forward and backward by hand; plain torch operations, nothing to compile.

What comes from the matrix product is worked through a few steps at a time, so that all intermediates of a block stay in
the processor's cache; only equation 5 and its reverse go step by step, with one operation each. Nothing but the
states is kept for the backward pass beside its inputs: gates and tanh are computed again. Letters as in `reference.py`;
`S` is `T + 1`: the states have the initial one in front.
"""

import torch
from torch import Tensor

from train.sru.operator import make_operator

BLOCK_ELEMENTS = 128 * 1024
"""Elements of one array in a block of steps: half a megabyte in float32, about ten of which fit the last cache."""


def forward(
    u_TBGD: Tensor,
    x_TBD: Tensor | None,
    bias_2D: Tensor,
    c0_BD: Tensor,
    h_TBD: Tensor,
    c_BD: Tensor,
    states_SBD: Tensor,
) -> None:
    """Equations 3 to 6 into `h_TBD`, `c_BD` (the last state) and `states_SBD`."""
    state = states_SBD.dtype
    states_SBD[0] = c0_BD
    for steps in _blocks(u_TBGD):
        u, c = u_TBGD[steps], states_SBD[steps.start + 1 : steps.stop + 1]
        f, r = _gates(u, bias_2D, state).unbind(2)
        x_tilde = u[:, :, 0].to(state)
        for i in range(len(u)):  # (5), as x~ + f (c - x~)
            torch.lerp(x_tilde[i], states_SBD[steps.start + i], f[i], out=c[i])
        h_TBD[steps] = torch.lerp(_highway(u, x_TBD, steps).to(state), _tanh(c), r)  # (6), as x + r (g - x)
    c_BD.copy_(states_SBD[-1])


def backward(
    dh_TBD: Tensor,
    dc_BD: Tensor,
    u_TBGD: Tensor,
    x_TBD: Tensor | None,
    bias_2D: Tensor,
    states_SBD: Tensor,
    du_TBGD: Tensor,
    dx_TBD: Tensor | None,
    dbias_2D: Tensor,
    dc0_BD: Tensor,
) -> None:
    """The gradients into the last four, from those of `h` and of the last state."""
    state = states_SBD.dtype
    carry_BD = dc_BD.to(state, copy=True)
    dbias_sum_2D = states_SBD.new_zeros(bias_2D.shape)
    for steps in reversed(_blocks(u_TBGD)):
        u, dh = u_TBGD[steps], dh_TBD[steps].to(state)
        c, c_before = states_SBD[steps.start + 1 : steps.stop + 1], states_SBD[steps]
        du = du_TBGD[steps] if du_TBGD.dtype == state else torch.empty_like(u, dtype=state)
        f, r = _gates(u, bias_2D, state).unbind(2)
        g = _tanh(c)

        dg = dh * r
        dhighway = du[:, :, 3] if dx_TBD is None else dx_TBD[steps]
        dhighway.copy_(dh - dg)
        dr = (g - _highway(u, x_TBD, steps)).mul_(dh)
        torch.ops.aten.sigmoid_backward.grad_input(dr, r, grad_input=du[:, :, 2])

        dc = torch.ops.aten.tanh_backward(dg, g)
        for i in reversed(range(len(u))):  # (5) reversed: the gradient of c_t gathers f_{t+1} times that of c_{t+1}
            dc[i] += carry_BD
            torch.mul(dc[i], f[i], out=carry_BD)
        torch.addcmul(dc, dc, f, value=-1, out=du[:, :, 0])
        df = (c_before - u[:, :, 0]).mul_(dc)
        torch.ops.aten.sigmoid_backward.grad_input(df, f, grad_input=du[:, :, 1])

        dbias_sum_2D += du[:, :, 1:3].sum((0, 1))
        if du_TBGD.dtype != state:
            du_TBGD[steps] = du
    dbias_2D.copy_(dbias_sum_2D)
    dc0_BD.copy_(carry_BD)


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


recurrence = make_operator("cpu", forward, backward)
