# mypy: disable-error-code="no-untyped-def"
"""The SRU's recurrence on a GPU: one kernel forward, one backward, each with gates, recurrence, highway and tanh in it.

A program owns one sequence and some neighbouring hidden units, and goes through the steps with its state in registers
(float32, or float64 for float64 states). The backward kernel computes gates and tanh again from the forward pass's
inputs and states. Nothing is summed with atomics, so the same input gives the same bits. Letters as in `reference.py`.
With TRITON_INTERPRET=1 in the environment at the start, the kernels run on a processor, slowly. `T` is a constant, as
the interpreter of Triton 3.6 needs; another length of clips costs half a second of compiling, once on a machine.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from train.sru.operator import Gradients, Outputs, make_recurrence

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether kernels run in Triton's interpreter, on a processor."""

BLOCK = 64
"""Hidden units of a program: one warp with two each, so that a half-precision pair has the 4 bytes of a prefetch."""

PREFETCHED_STEPS = tl.constexpr(4)
"""Steps whose loads are issued ahead. Loads do not depend on the state, so this hides the latency of memory."""

LAUNCH = {"num_warps": 1, "enable_fp_fusion": True}
"""A fused product and sum rounds once instead of twice. Set explicitly because Triton's default is changing."""


@triton.jit
def _sigmoid(x):
    """1 / (1 + exp(-x)), and 1 minus that, without loss of digits near 0."""
    power = tl.exp(tl.where(x < -80, 80.0, -x))  # below -80, infinity times 0 would be NaN
    share = 1 / (1 + power)
    return share, power * share


@triton.jit
def _tanh(x):
    """tanh(x) and its derivative, 1 - tanh(x)^2 = 4 s (1 - s)."""
    share, rest = _sigmoid(2 * x)
    return share - rest, 4 * share * rest


@triton.jit
def _forward(u, x, bias, c0, h, states, T: tl.constexpr, B, D, PROJECTED: tl.constexpr, BLOCK: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = d < D
    state: tl.constexpr = states.dtype.element_ty
    G: tl.constexpr = 4 if PROJECTED else 3
    bias_f = tl.load(bias + d, mask=inside, other=0).to(state)
    bias_r = tl.load(bias + D + d, mask=inside, other=0).to(state)
    c = tl.load(c0 + b * D + d, mask=inside, other=0).to(state)
    tl.store(states + b * D + d, c, mask=inside)
    for t in tl.range(T, num_stages=PREFETCHED_STEPS):
        row = t * B + b
        u_t = u + row * G * D + d
        x_tilde = tl.load(u_t, mask=inside, other=0).to(state)
        f, f_rest = _sigmoid(tl.load(u_t + D, mask=inside, other=0).to(state) + bias_f)
        r, r_rest = _sigmoid(tl.load(u_t + 2 * D, mask=inside, other=0).to(state) + bias_r)
        highway = tl.load(u_t + 3 * D if PROJECTED else x + row * D + d, mask=inside, other=0).to(state)
        c = f * c + f_rest * x_tilde
        g, _ = _tanh(c)
        tl.store(states + (row + B) * D + d, c, mask=inside)
        tl.store(h + row * D + d, r * g + r_rest * highway, mask=inside)


@triton.jit
def _backward(
    dh, dc_T, u, x, bias, c_S, du, dx, dbias, dc0, T: tl.constexpr, B, D, PROJECTED: tl.constexpr, BLOCK: tl.constexpr
):
    b = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = d < D
    state: tl.constexpr = c_S.dtype.element_ty
    G: tl.constexpr = 4 if PROJECTED else 3
    bias_f = tl.load(bias + d, mask=inside, other=0).to(state)
    bias_r = tl.load(bias + D + d, mask=inside, other=0).to(state)
    dbias_f = tl.zeros([BLOCK], state)
    dbias_r = tl.zeros([BLOCK], state)
    carry = tl.load(dc_T + b * D + d, mask=inside, other=0).to(state)
    c = tl.load(c_S + (T * B + b) * D + d, mask=inside, other=0)
    for i in tl.range(T, num_stages=PREFETCHED_STEPS):
        row = (T - 1 - i) * B + b
        u_t, du_t = u + row * G * D + d, du + row * G * D + d
        x_tilde = tl.load(u_t, mask=inside, other=0).to(state)
        f, f_rest = _sigmoid(tl.load(u_t + D, mask=inside, other=0).to(state) + bias_f)
        r, r_rest = _sigmoid(tl.load(u_t + 2 * D, mask=inside, other=0).to(state) + bias_r)
        highway = tl.load(u_t + 3 * D if PROJECTED else x + row * D + d, mask=inside, other=0).to(state)
        dh_t = tl.load(dh + row * D + d, mask=inside, other=0).to(state)
        before = tl.load(c_S + row * D + d, mask=inside, other=0)
        g, g_slope = _tanh(c)

        dhighway = dh_t * r_rest
        tl.store(du_t + 3 * D if PROJECTED else dx + row * D + d, dhighway, mask=inside)
        dr = dhighway * r * (g - highway)
        dc = dh_t * r * g_slope + carry
        carry = dc * f
        dx_tilde = dc * f_rest
        df = dx_tilde * f * (before - x_tilde)
        tl.store(du_t, dx_tilde, mask=inside)
        tl.store(du_t + D, df, mask=inside)
        tl.store(du_t + 2 * D, dr, mask=inside)
        dbias_f += df
        dbias_r += dr
        c = before
    tl.store(dc0 + b * D + d, carry, mask=inside)
    tl.store(dbias + b * 2 * D + d, dbias_f, mask=inside)
    tl.store(dbias + b * 2 * D + D + d, dbias_r, mask=inside)


def forward(u_TBGD: Tensor, x_TBD: Tensor | None, bias_2D: Tensor, c0_BD: Tensor, out: Outputs) -> None:
    """Equations 3 to 6."""
    steps, batch, _, hidden = u_TBGD.shape
    h_TBD, states_SBD = out
    u, bias, c0 = u_TBGD.contiguous(), bias_2D.contiguous(), c0_BD.contiguous()
    x = u if x_TBD is None else x_TBD.contiguous()
    with torch.cuda.device_of(u):
        _forward[batch, triton.cdiv(hidden, BLOCK)](
            u, x, bias, c0, h_TBD, states_SBD,
            steps, batch, hidden, x_TBD is None, BLOCK, **LAUNCH,
        )  # fmt: skip


def backward(
    dh_TBD: Tensor, dc_BD: Tensor, u_TBGD: Tensor, x_TBD: Tensor | None, bias_2D: Tensor, c_SBD: Tensor, out: Gradients
) -> None:
    """The gradients. Those of the biases are summed over sequences afterwards, always in the same order."""
    steps, batch, _, hidden = u_TBGD.shape
    du_TBGD, dx_TBD, dbias_2D, dc0_BD = out
    dh, dlast = dh_TBD.contiguous(), dc_BD.contiguous()
    u, bias = u_TBGD.contiguous(), bias_2D.contiguous()
    x, dx = (u, du_TBGD) if x_TBD is None else (x_TBD.contiguous(), dx_TBD)
    dbias_B2D = c_SBD.new_empty(batch, 2, hidden)
    with torch.cuda.device_of(u):
        _backward[batch, triton.cdiv(hidden, BLOCK)](
            dh, dlast, u, x, bias, c_SBD, du_TBGD, dx, dbias_B2D, dc0_BD,
            steps, batch, hidden, x_TBD is None, BLOCK, **LAUNCH,
        )  # fmt: skip
    dbias_2D.copy_(dbias_B2D.sum(0))


recurrence = make_recurrence(forward, backward)
