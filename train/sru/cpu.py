"""The SRU's recurrence on a processor, forward and backward by hand; plain torch operations, nothing to compile.

What comes from the matrix product is worked through a few steps at a time, in few workspaces that are used again for
each block and overwritten as soon as their content is not needed, so that intermediates stay in the processor's cache
and cost no fresh memory; only equation 5 and its reverse go step by step, with one operation each. Nothing but the
states is kept for the backward pass beside its inputs: to compute gates and tanh again takes less time than to write
them to memory and read them back. Letters as in `reference.py`; `S` is `T + 1`: the states have the initial one in
front.
"""

import torch
from torch import Tensor

from train.sru.operator import Backward, Forward, make_operator

BLOCK_ELEMENTS = 128 * 1024
"""Elements of one array in a block of steps: half a megabyte in float32, about nine of which fit the last cache."""

_tanh_backward = torch.ops.aten.tanh_backward.grad_input


def forward(to: Forward) -> None:
    """Equations 3 to 6."""
    work = _Workspace(to.u_TBGD, to.bias_2D, to.states_SBD.dtype)
    to.states_SBD[0] = to.c0_BD
    c_t = to.states_SBD[0]
    for steps in work.blocks:
        c, h_block = to.states_SBD[steps.start + 1 : steps.stop + 1], to.h_TBD[steps]
        u = work.read("u", to.u_TBGD[steps])
        gates = work.buffer("gates", u[:, :, 1:3]) if u.dtype == to.u_TBGD.dtype else u[:, :, 1:3]
        highway = u[:, :, 3] if to.x_TBD is None else work.read("x", to.x_TBD[steps])
        f, r = work.gates(u, out=gates)
        for x_tilde, f_t, c_next in zip(u[:, :, 0].unbind(), f.unbind(), c.unbind(), strict=True):
            c_t = torch.lerp(x_tilde, c_t, f_t, out=c_next)  # (5), as x~ + f (c - x~)
        g = work.tanh(c)
        if h_block.dtype == g.dtype:
            torch.lerp(highway, g, r, out=h_block)  # (6), as x + r (g - x)
        else:
            h_block.copy_(torch.lerp(highway, g, r, out=g))
    to.last_BD.copy_(c_t)


def backward(to: Backward) -> None:
    """The gradients, block after block from the end."""
    work = _Workspace(to.u_TBGD, to.bias_2D, to.states_SBD.dtype)
    carry_BD = to.dlast_BD.to(to.states_SBD.dtype, copy=True)
    dbias_2D = to.states_SBD.new_zeros(to.bias_2D.shape)
    for steps in reversed(work.blocks):
        u, dh = work.read("u", to.u_TBGD[steps]), work.read("dh", to.dh_TBD[steps])
        # Where u is a converted copy, its gradient takes its place piece by piece; else the output's memory is used.
        du = to.du_TBGD[steps] if u.dtype == to.du_TBGD.dtype else u
        if to.x_TBD is None or to.dx_TBD is None:
            highway, dhighway = u[:, :, 3], du[:, :, 3]
        else:
            highway = work.read("x", to.x_TBD[steps])
            dhighway = to.dx_TBD[steps] if highway.dtype == to.dx_TBD.dtype else highway
        c = to.states_SBD[steps.start + 1 : steps.stop + 1]
        _block(work, u, highway, dh, c, carry_BD, du, dhighway)
        dbias_2D += du[:, :, 1:3].sum((0, 1))
        if du.dtype != to.du_TBGD.dtype:
            to.du_TBGD[steps].copy_(du)
        if to.dx_TBD is not None and dhighway.dtype != to.dx_TBD.dtype:
            to.dx_TBD[steps].copy_(dhighway)
    to.dbias_2D.copy_(dbias_2D)
    to.dc0_BD.copy_(carry_BD)


def _block(
    work: "_Workspace",
    u: Tensor,
    highway: Tensor,
    dh: Tensor,
    c: Tensor,
    carry_BD: Tensor,
    du: Tensor,
    dhighway: Tensor,
) -> None:
    """Gradients of a block of steps into `du` and `dhighway`, which may be the memory of `u` and `highway`.

    `carry` holds what the steps behind the block add to the gradient of its last state, then what the block adds to
    that of the state before it. The order matters: nothing is overwritten that a later line reads.
    """
    f, r = work.gates(u, out=du[:, :, 1:3])
    g, product = work.tanh(c), work.buffer("product", c)
    torch.sub(g, highway, out=product).mul_(r)
    dg = torch.mul(dh, r, out=work.buffer("dg", c))
    torch.sub(dh, dg, out=dhighway)
    torch.mul(product, dhighway, out=r)  # dh (g - x) r (1 - r), with dh (1 - r) from the line above

    dc = _tanh_backward(dg, g, grad_input=dg)
    _reverse_recurrence(dc, f, carry_BD)
    torch.sub(c, u[:, :, 0], out=product)
    dx_tilde = torch.addcmul(dc, dc, f, value=-1, out=du[:, :, 0])
    torch.mul(product, dx_tilde, out=f)  # dc (c_before - x~) f (1 - f), where (c_before - x~) f is c - x~ by (5)


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

    def gates(self, u: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
        """f and r, equations 3 and 4, in `out`."""
        f, r = torch.add(u[:, :, 1:3], self.bias_2D, out=out).sigmoid_().unbind(2)
        return f, r

    def tanh(self, c: Tensor) -> Tensor:
        """tanh(c) as 2 sigmoid(2c) - 1: a third of torch.tanh's time, and off by one rounding of numbers near 1."""
        doubled = torch.mul(c, 2, out=self.buffer("tanh", c))
        return torch.add(self.minus_one, doubled.sigmoid_(), alpha=2, out=doubled)


recurrence = make_operator("cpu", forward, backward)
