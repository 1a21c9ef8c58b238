"""The SRU's recurrence: the reference against finite differences, the CPU path against the reference."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.sru import ODD_SHAPES, assert_equals_reference, assert_nan_and_infinities_come_out, draw, results
from train.sru import compiled, cpu, reference


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Kernels run on so many threads, however small the work."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "GRAIN", 1)
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)


@pytest.mark.parametrize("projected", [False, True], ids=["input as highway", "projected highway"])
@pytest.mark.parametrize("implementation", [reference, cpu], ids=["reference", "cpu"])
def test_gradients_are_the_finite_differences(implementation, projected):
    *arguments, _, _ = draw((3, 2, 3), projected, torch.float64)
    leaves = [None if tensor is None else tensor.requires_grad_() for tensor in arguments]
    assert torch.autograd.gradcheck(implementation.recurrence, leaves)


def test_reference_layer_follows_the_equations_step_by_step():
    x, weight, bias, c0 = (torch.randn(size, dtype=torch.float64) for size in ((4, 1, 5), (4, 3, 5), (2, 3), (1, 3)))
    h, c = reference.layer(x, weight, bias, c0)
    state = c0[0]
    for t in range(4):
        x_tilde, f, r, highway = (weight @ x[t, 0]).unbind()
        f, r = 1 / (1 + torch.exp(-f - bias[0])), 1 / (1 + torch.exp(-r - bias[1]))
        state = f * state + (1 - f) * x_tilde
        torch.testing.assert_close(h[t, 0], r * torch.tanh(state) + (1 - r) * highway)
    torch.testing.assert_close(c[0], state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("projected", [False, True], ids=["input as highway", "projected highway"])
@pytest.mark.parametrize("shape", ODD_SHAPES, ids=str)
def test_cpu_equals_reference(shape, projected, dtype):
    assert_equals_reference(cpu.recurrence, draw(shape, projected, dtype))


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 9), st.integers(1, 300)),
    projected=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    threads=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_cpu_equals_reference_at_any_shape_and_number_of_threads(shape, projected, dtype, threads, seed):
    with on_threads(threads):
        assert_equals_reference(cpu.recurrence, draw(shape, projected, dtype, seed))


def test_cpu_gives_the_same_bits_on_any_number_of_threads():
    inputs = draw((9, 3, 333), False, torch.bfloat16)
    with on_threads(1):
        alone = results(cpu.recurrence, inputs)
    for threads in (2, 3, 8):
        with on_threads(threads):
            together = results(cpu.recurrence, inputs)
        assert all(torch.equal(alone[name], together[name]) for name in alone)


def test_cpu_takes_non_contiguous_tensors():
    inputs = draw((6, 5, 8), False, torch.float32)
    strided = [tensor.repeat_interleave(2, -1)[..., ::2] for tensor in inputs if tensor is not None]
    turned = [tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in strided]
    for odd in (strided, turned):
        assert not any(tensor.is_contiguous() for tensor in odd)
        assert_equals_reference(cpu.recurrence, odd)


@pytest.mark.parametrize("used", ["h", "c"])
def test_cpu_takes_a_gradient_of_one_output_alone(used):
    *arguments, dh, dc = draw((6, 5, 8), True, torch.float64)
    leaves = [None if tensor is None else tensor.requires_grad_() for tensor in arguments]
    wanted = [leaf for leaf in leaves if leaf is not None]

    def gradients(recurrence):
        h, c = recurrence(*leaves)
        return torch.autograd.grad(h if used == "h" else c, wanted, dh if used == "h" else dc)

    for ours, theirs in zip(gradients(cpu.recurrence), gradients(reference.recurrence), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("of_u", "of_x"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_cpu_takes_an_input_of_another_dtype_than_its_transformation(of_u, of_x):
    """As under autocast, where features stay float32."""
    u, x, *rest = draw((9, 5, 8), False, torch.float32)
    assert_equals_reference(cpu.recurrence, [u.to(of_u), x.to(of_x), *rest[:2], rest[2].to(of_u), rest[3]])


def test_cpu_holds_for_large_values():
    inputs = draw((20, 3, 16), False, torch.float32)
    assert_equals_reference(cpu.recurrence, [tensor * 100 for tensor in inputs if tensor is not None])


def test_no_kernel_hides_what_is_not_finite():
    assert_nan_and_infinities_come_out(cpu.recurrence, draw((2, 1, 4), False, torch.float32))


def test_cpu_gives_the_same_bits_each_time():
    inputs = draw((30, 28, 64), True, torch.float32)
    first, second = results(cpu.recurrence, inputs), results(cpu.recurrence, inputs)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_second_derivative_is_refused_rather_than_wrong():
    *arguments, _, _ = draw((3, 2, 4), True, torch.float64)
    leaves = [None if tensor is None else tensor.requires_grad_() for tensor in arguments]
    h, _ = cpu.recurrence(*leaves)
    (du,) = torch.autograd.grad(h.square().sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        du.sum().backward()
