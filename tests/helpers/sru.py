"""Random inputs for SRU recurrences, and the comparison of outputs and gradients with the reference's."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from train.sru import reference
from train.sru.reference import TOLERANCES, error

NAMES = ("h", "c", "du", "dx", "dbias", "dc0")

ODD_SHAPES = [(1, 1, 1), (1, 3, 5), (2, 1, 130), (30, 1, 16), (1, 28, 64), (7, 5, 3), (31, 4, 33), (64, 2, 257)]
"""Steps, sequences, hidden units."""


@contextmanager
def nan_in_new_memory() -> Iterator[None]:
    """Lets torch fill new memory with NaN, so that a test sees an element that was never written."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def draw(shape: tuple[int, int, int], projected: bool, dtype: torch.dtype, seed: int = 0) -> list[Tensor | None]:
    """Returns u, x (None if `u` has the highway term), biases, c0, and the gradients of h and of the last state."""
    steps, batch, hidden = shape
    generator = torch.Generator().manual_seed(seed)
    state = torch.promote_types(dtype, torch.float32)
    sizes = {
        "u": ((steps, batch, 4 if projected else 3, hidden), dtype),
        "x": ((steps, batch, hidden), dtype),
        "bias": ((2, hidden), state),
        "c0": ((batch, hidden), state),
        "dh": ((steps, batch, hidden), dtype),
        "dc": ((batch, hidden), state),
    }
    drawn = {name: torch.randn(size, generator=generator).to(kind) for name, (size, kind) in sizes.items()}
    return [None if projected and name == "x" else tensor for name, tensor in drawn.items()]


def results(recurrence: Callable, inputs: list[Tensor | None]) -> dict[str, Tensor]:
    """Returns h, the last state, and the gradients of all inputs."""
    *arguments, dh, dc = (None if tensor is None else tensor.detach() for tensor in inputs)
    leaves = [None if tensor is None else tensor.requires_grad_() for tensor in arguments]
    h, c = recurrence(*leaves)
    gradients = torch.autograd.grad([h, c], [leaf for leaf in leaves if leaf is not None], [dh, dc])
    names = [name for name in NAMES if name != "dx" or leaves[1] is not None]
    return dict(zip(names, [h.detach(), c.detach(), *gradients], strict=True))


def assert_equals_reference(recurrence: Callable, inputs: list[Tensor | None], tolerances: dict = TOLERANCES) -> None:
    """Outputs and gradients equal the float64 reference's on the same inputs, within the tolerance of their dtypes."""
    with nan_in_new_memory():
        ours = results(recurrence, inputs)
    theirs = results(reference.recurrence, [None if tensor is None else tensor.double() for tensor in inputs])
    u, x, bias, c0, _, _ = inputs
    for name, like in zip(NAMES, (u, c0, u, x, bias, c0), strict=True):
        if like is not None:
            assert ours[name].dtype == like.dtype, name
            assert error(ours[name], theirs[name]) <= tolerances[like.dtype], name


def assert_nan_and_infinities_come_out(recurrence: Callable, inputs: list[Tensor | None]) -> None:
    """A NaN appears in its own unit only; infinite gates are 0 and 1. `inputs` have 2 steps and 4 units."""
    u, x, bias, c0, *_ = inputs
    u[0, 0, :, 0], u[0, 0, 1, 1], u[0, 0, 2, 2] = float("nan"), float("inf"), float("-inf")
    h, c = recurrence(u, x, bias, c0)
    assert torch.isnan(h[:, 0, 0]).all()
    assert torch.isnan(c[0, 0])
    assert torch.isfinite(h[:, 0, 1:]).all()
    assert torch.isfinite(c[0, 1:]).all()
    assert torch.allclose(h[0, 0, 2], x[0, 0, 2])
