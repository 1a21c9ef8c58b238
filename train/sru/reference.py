"""The SRU as the paper writes it: the specification that every other implementation is tested against.

Plain torch, one step after the other, differentiable by autograd. It is meant to be read, and never optimised. How far
other implementations may be from it stands below, for tests and benchmarks alike.

Letters: `T` steps, `B` sequences, `C` input channels, `D` hidden units, `G` transformations of the input: 3 (equations
2, 3, 4), or 4 if the input is not `D` wide and the highway term of equation 6 needs a projection of it.
"""

import torch
from torch import Tensor


def layer(
    x_TBC: Tensor, weight_GDC: Tensor, bias_2D: Tensor, c0_BD: Tensor, mask_BC: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One SRU layer, equations 2 to 6. Returns the hidden states `[T, B, D]` and the last state `[B, D]`.

    `weight_GDC` stacks W, W_f, W_r and, if C differs from D, the projection of the highway term; `bias_2D` stacks
    b_f and b_r. `mask_BC` multiplies the input of these transformations (variational dropout), the same at every step.
    """
    dropped_TBC = x_TBC if mask_BC is None else x_TBC * mask_BC
    u_TBGD = torch.einsum("tbc,gdc->tbgd", dropped_TBC, weight_GDC)
    return recurrence(u_TBGD, x_TBC if len(weight_GDC) == 3 else None, bias_2D, c0_BD)


def recurrence(u_TBGD: Tensor, x_TBD: Tensor | None, bias_2D: Tensor, c0_BD: Tensor) -> tuple[Tensor, Tensor]:
    """What follows the matrix product: gates, state, highway. Returns the hidden states and the last state, as `layer`.

    `u_TBGD` is the transformed input; `x_TBD` is the input itself for the highway term, None if `u` has a fourth slice
    for it. Computed in `c0`'s dtype, which is also the dtype of the returned state; `h` has the dtype of `u`.
    """
    state = c0_BD.dtype
    u = u_TBGD.to(state)
    bias_f, bias_r = bias_2D.to(state)
    x_tilde_TBD = u[:, :, 0]  # (2), W x_t
    f_TBD = torch.sigmoid(u[:, :, 1] + bias_f)  # (3)
    r_TBD = torch.sigmoid(u[:, :, 2] + bias_r)  # (4)
    c, states = c0_BD, []
    for f, x_tilde in zip(f_TBD.unbind(), x_tilde_TBD.unbind(), strict=True):
        c = f * c + (1 - f) * x_tilde  # (5)
        states.append(c)
    highway_TBD = u[:, :, 3] if x_TBD is None else x_TBD.to(state)
    h_TBD = r_TBD * torch.tanh(torch.stack(states)) + (1 - r_TBD) * highway_TBD  # (6), g = tanh
    return h_TBD.to(u_TBGD.dtype), c


TOLERANCES = {
    torch.float64: 2e-15,
    torch.float32: 1e-6,
    torch.bfloat16: 4e-3,
    torch.float16: 5e-4,
}
"""Largest `error` of each output and gradient of the recurrence against the float64 reference on the same inputs, by
the output's dtype: a few roundings in float32 and float64; in half precision the single rounding of the result (2^-8
and 2^-11), since everything before it is float32."""


def error(ours: Tensor, reference: Tensor) -> float:
    """Returns the largest difference, as a fraction of the reference's largest value if that exceeds 1.

    Infinity if `ours` has NaN or Inf.
    """
    if not bool(torch.isfinite(ours).all()):
        return float("inf")
    return float((ours.double() - reference.double()).abs().max() / reference.abs().max().clamp_min(1))
