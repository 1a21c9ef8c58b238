"""The SRU's recurrence on a processor: one kernel forward, one backward, each with gates, recurrence and highway in it.

The states stay in the processor's cache from one step to the next. Only they are kept for the backward kernel, which
computes gates and tanh again: writing them to memory and reading them back would take longer. Letters as in
`reference.py`; `S` is `T + 1`: the initial state comes first.
"""

import torch
from torch import Tensor

from train.sru.compiled import At, Kernel
from train.sru.lanes import Vector
from train.sru.operator import Gradients, Outputs, make_recurrence


def _forward(at: At) -> None:
    x_tilde = at["u", 0]  # (2)
    f, f_rest = (at["u", 1] + at["bias", 0]).sigmoid()  # (3)
    r, r_rest = (at["u", 2] + at["bias", 1]).sigmoid()  # (4)
    c = f.times_plus(at["before", 0], f_rest * x_tilde)  # (5)
    at["after", 0] = c
    g, _ = c.tanh()
    at["h", 0] = r.times_plus(g, r_rest * _highway(at))  # (6)


def _backward(at: At) -> None:
    x_tilde = at["u", 0]
    f, f_rest = (at["u", 1] + at["bias", 0]).sigmoid()
    r, r_rest = (at["u", 2] + at["bias", 1]).sigmoid()
    g, g_slope = at["after", 0].tanh()
    dh, highway = at["dh", 0], _highway(at)

    dhighway = dh * r_rest
    dr = dhighway * r * (g - highway)
    dc = (dh * r).times_plus(g_slope, at["carry", 0])
    carry = dc * f
    dx_tilde = dc * f_rest
    df = dx_tilde * f * (at["before", 0] - x_tilde)

    if "dx" in at.arrays:
        at["dx", 0] = dhighway
    else:
        at["du", 3] = dhighway
    at["du", 0], at["du", 1], at["du", 2] = dx_tilde, df, dr
    _add_up(at, 0, df)
    _add_up(at, 1, dr)
    at["carry", 0] = carry


def _add_up(at: At, part: int, term: Vector) -> None:
    """Add `term` to a bias's gradient by Kahan's compensated sum: terms of many steps may cancel each other."""
    before = at["dbias", part]
    wanted = term - at["dbias", part + 2]
    after = before + wanted
    at["dbias", part], at["dbias", part + 2] = after, (after - before) - wanted


def _highway(at: At) -> Vector:
    """The highway term of equation 6: the input, or the fourth transformation if the widths differ."""
    return at["x", 0] if "x" in at.arrays else at["u", 3]


_FORWARD = Kernel(_forward, registers=2)
_BACKWARD = Kernel(_backward, last_first=True)


def forward(u_TBGD: Tensor, x_TBD: Tensor | None, bias_2D: Tensor, c0_BD: Tensor, out: Outputs) -> None:
    """Equations 3 to 6."""
    steps, batch, _, hidden = u_TBGD.shape
    h_TBD, states_SBD = out
    states_SBD[0] = c0_BD
    each_step = {"u": u_TBGD.contiguous(), "h": h_TBD, "before": states_SBD[:-1], "after": states_SBD[1:]}
    if x_TBD is not None:
        each_step["x"] = x_TBD.contiguous()
    _FORWARD((steps, batch, hidden), {"step": each_step, "shared": {"bias": bias_2D.contiguous()}})


def backward(
    dh_TBD: Tensor, dc_BD: Tensor, u_TBGD: Tensor, x_TBD: Tensor | None, bias_2D: Tensor, c_SBD: Tensor, out: Gradients
) -> None:
    """The gradients. Those of the biases are summed over sequences afterwards, always in the same order."""
    steps, batch, _, hidden = u_TBGD.shape
    du_TBGD, dx_TBD, dbias_2D, dc0_BD = out
    dc0_BD.copy_(dc_BD)
    # For each sequence the sums for both gates, and the error of each sum's last rounding.
    dbias_B4D = torch.zeros(batch, 4, hidden, dtype=c_SBD.dtype)
    each_step = {"dh": dh_TBD.contiguous(), "u": u_TBGD.contiguous(), "du": du_TBGD}
    each_step |= {"before": c_SBD[:-1], "after": c_SBD[1:]}
    if x_TBD is not None and dx_TBD is not None:
        each_step |= {"x": x_TBD.contiguous(), "dx": dx_TBD}
    each_sequence = {"carry": dc0_BD, "dbias": dbias_B4D}
    shared = {"bias": bias_2D.contiguous()}
    _BACKWARD((steps, batch, hidden), {"step": each_step, "sequence": each_sequence, "shared": shared})
    sums_4D = dbias_B4D.double().sum(0)
    dbias_2D.copy_(sums_4D[:2] - sums_4D[2:])


recurrence = make_recurrence(forward, backward)
