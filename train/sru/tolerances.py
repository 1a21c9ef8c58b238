"""How far an implementation may be from the reference, in one place for tests and benchmarks."""

import torch
from torch import Tensor

TOLERANCES = {
    torch.float64: 2e-15,
    torch.float32: 1e-6,
    torch.bfloat16: 4e-3,
    torch.float16: 5e-4,
}
"""Largest error (see below) of each output and gradient of the recurrence against the float64 reference on the same
inputs, by the output's own dtype: a few roundings in float32 and float64; in half precision the single rounding of the
result (2^-8 and 2^-11), since everything before it is float32."""

INTERPRETER_TOLERANCES = TOLERANCES | {torch.bfloat16: 8e-3}
"""The same for Triton's interpreter, which cuts a bf16 result off (2^-7) where a GPU rounds it."""


def error(ours: Tensor, reference: Tensor) -> float:
    """Largest difference, as a fraction of the reference's largest value where that exceeds 1; infinite for NaN."""
    if not bool(torch.isfinite(ours).all()):
        return float("inf")
    return float((ours.double() - reference.double()).abs().max() / reference.abs().max().clamp_min(1))
