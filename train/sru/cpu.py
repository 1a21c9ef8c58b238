"""The SRU's recurrence on a processor, forward and backward by hand; plain torch operations, nothing to compile.

What comes from the matrix product is worked through a few steps at a time, in workspaces that are used again for each
block, so that intermediates stay in the processor's cache and cost no fresh memory; only equation 5 and its reverse go
step by step, with one operation each. Nothing but the states is kept for the backward pass beside its inputs: gates
and tanh are computed again. Letters as in `reference.py`; `S` is `T + 1`: the states have the initial one in front.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from train.sru.operator import make_operator

BLOCK_ELEMENTS = 128 * 1024
"""Elements of one array in a block of steps: half a megabyte in float32, about ten of which fit the last cache."""

_tanh_backward = torch.ops.aten.tanh_backward.grad_input


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
    work = _Workspace(u_TBGD, bias_2D, states_SBD.dtype)
    states_SBD[0] = c0_BD
    c_t = states_SBD[0]
    for steps in work.blocks:
        u, c = work.read("u", u_TBGD[steps]), states_SBD[steps.start + 1 : steps.stop + 1]
        highway = u[:, :, 3] if x_TBD is None else work.read("x", x_TBD[steps])
        f, r = work.gates(u)
        for x_tilde, f_t, c_next in zip(u[:, :, 0].unbind(), f.unbind(), c.unbind(), strict=True):
            c_t = torch.lerp(x_tilde, c_t, f_t, out=c_next)  # (5), as x~ + f (c - x~)
        with work.write("h", h_TBD[steps]) as h:
            torch.lerp(highway, work.tanh(c), r, out=h)  # (6), as x + r (g - x)
    c_BD.copy_(c_t)


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
    work = _Workspace(u_TBGD, bias_2D, states_SBD.dtype)
    carry_BD = dc_BD.to(states_SBD.dtype, copy=True)
    dbias_sum_2D = states_SBD.new_zeros(bias_2D.shape)
    for steps in reversed(work.blocks):
        u, dh = work.read("u", u_TBGD[steps]), work.read("dh", dh_TBD[steps])
        c = states_SBD[steps.start + 1 : steps.stop + 1]
        highway = u[:, :, 3] if x_TBD is None else work.read("x", x_TBD[steps])
        f, r = work.gates(u)
        g = work.tanh(c)
        product = work.buffer("product", c)
        with work.write("du", du_TBGD[steps]) as du:
            dg = torch.mul(dh, r, out=work.buffer("dg", c))
            with work.write("dx", du[:, :, 3] if dx_TBD is None else dx_TBD[steps]) as dhighway:
                torch.sub(dh, dg, out=dhighway)
                # dh (g - x) r (1 - r), with dh (1 - r) from the line above
                torch.mul(torch.sub(g, highway, out=product).mul_(r), dhighway, out=du[:, :, 2])

            dc = _tanh_backward(dg, g, grad_input=dg)
            _reverse_recurrence(dc, f, carry_BD)
            dx_tilde = torch.addcmul(dc, dc, f, value=-1, out=du[:, :, 0])
            # dc (c_before - x~) f (1 - f), where (c_before - x~) f is c - x~ by (5)
            torch.mul(torch.sub(c, u[:, :, 0], out=product), dx_tilde, out=du[:, :, 1])
            dbias_sum_2D += du[:, :, 1:3].sum((0, 1))
    dbias_2D.copy_(dbias_sum_2D)
    dc0_BD.copy_(carry_BD)


def _reverse_recurrence(dc_TBD: Tensor, f_TBD: Tensor, carry_BD: Tensor) -> None:
    """Equation 5 reversed, in place: the gradient of c_t gathers f_{t+1} times that of c_{t+1}, `carry` at the end."""
    dc, f = dc_TBD.unbind(), f_TBD.unbind()
    dc[-1].add_(carry_BD)
    for t in reversed(range(len(dc) - 1)):
        dc[t].addcmul_(dc[t + 1], f[t + 1])
    torch.mul(dc[0], f[0], out=carry_BD)


class _Workspace:
    """Buffers in the state's dtype for one block of steps, and what is computed into them both ways."""

    def __init__(self, u_TBGD: Tensor, bias_2D: Tensor, dtype: torch.dtype) -> None:
        steps, batch, _, hidden = u_TBGD.shape
        self.length = min(steps, max(1, BLOCK_ELEMENTS // (batch * hidden)))
        self.blocks = [slice(start, min(start + self.length, steps)) for start in range(0, steps, self.length)]
        self.bias_2D, self.minus_one, self.dtype = bias_2D.to(dtype), torch.tensor(-1, dtype=dtype), dtype
        self.buffers: dict[str, Tensor] = {}

    def buffer(self, name: str, like: Tensor) -> Tensor:
        """The buffer `name`, of the shape of `like`, which is one block."""
        if name not in self.buffers:
            self.buffers[name] = torch.empty(self.length, *like.shape[1:], dtype=self.dtype)
        return self.buffers[name][: len(like)]

    def read(self, name: str, block: Tensor) -> Tensor:
        """`block` in the state's dtype: itself, or a copy in the buffer `name`."""
        return block if block.dtype == self.dtype else self.buffer(name, block).copy_(block)

    @contextmanager
    def write(self, name: str, block: Tensor) -> Iterator[Tensor]:
        """What to write in the state's dtype so that it ends up in `block`."""
        target = block if block.dtype == self.dtype else self.buffer(name, block)
        yield target
        if target is not block:
            block.copy_(target)

    def gates(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """f and r, equations 3 and 4."""
        gates = self.buffer("gates", u[:, :, 1:3])
        f, r = torch.add(u[:, :, 1:3], self.bias_2D, out=gates).sigmoid_().unbind(2)
        return f, r

    def tanh(self, c: Tensor) -> Tensor:
        """tanh(c) as 2 sigmoid(2c) - 1: a third of torch.tanh's time, and off by one rounding of numbers near 1."""
        doubled = torch.mul(c, 2, out=self.buffer("tanh", c))
        return torch.add(self.minus_one, doubled.sigmoid_(), alpha=2, out=doubled)


recurrence = make_operator("cpu", forward, backward)
