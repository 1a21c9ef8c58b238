"""The Triton kernels against the reference: on a GPU where there is one, else in Triton's interpreter.

The interpreter has to be chosen before Triton is imported, so without a GPU one test here runs the others in a process
of its own. That they also compile for real GPUs is checked with Triton's compiler, which needs none.
"""

import os
import subprocess
import sys

import pytest
import torch

from tests.helpers.sru import ODD_SHAPES, assert_equals_reference, assert_nan_and_infinities_come_out, draw, results
from train.sru import SRU
from train.sru.reference import TOLERANCES

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# The interpreter truncates a bf16 result (2^-7), while a GPU rounds it.
INTERPRETER_TOLERANCES = TOLERANCES | {torch.bfloat16: 8e-3}
DEVICE = "cpu" if INTERPRETED else "cuda"

runs_kernels = pytest.mark.skipif(
    not (INTERPRETED or torch.cuda.is_available()), reason="no GPU: runs in a child process, in Triton's interpreter"
)
SHAPES = [(1, 1, 1), (3, 2, 70)] if INTERPRETED else [*ODD_SHAPES, (30, 28, 1024), (300, 3, 70)]
HIGHWAYS = pytest.mark.parametrize("projected", [False, True], ids=["input as highway", "projected highway"])


@pytest.mark.skipif(torch.cuda.is_available() or INTERPRETED, reason="the kernels run in this process")
def test_in_the_interpreter():
    child = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__, "tests/test_gpu_candidates.py"],
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stdout + child.stderr
    assert "passed" in child.stdout


@runs_kernels
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@HIGHWAYS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels_equal_reference(shape, projected, dtype):
    assert_kernels_equal_reference(draw(shape, projected, dtype))


@runs_kernels
def test_kernels_take_non_contiguous_tensors():
    inputs = draw((4, 3, 6), False, torch.float32)
    assert_kernels_equal_reference(
        [tensor.repeat_interleave(2, -1)[..., ::2] for tensor in inputs if tensor is not None]
    )


@runs_kernels
def test_kernels_take_a_gradient_that_is_expanded():
    *inputs, dh, dc = draw((4, 3, 6), False, torch.float32)
    assert_kernels_equal_reference([*inputs, dh[:1, :1, :1].expand_as(dh), dc[:1].expand_as(dc)])


@runs_kernels
def test_kernels_hold_for_large_values():
    assert_kernels_equal_reference([tensor * 100 for tensor in draw((20, 3, 16), False, torch.float32)])


@runs_kernels
def test_no_kernel_hides_what_is_not_finite():
    from train.sru import triton

    assert_nan_and_infinities_come_out(triton.recurrence, on_device(draw((2, 1, 4), False, torch.float32)))


@runs_kernels
def test_kernels_give_the_same_bits_each_time():
    from train.sru import triton

    inputs = on_device(draw((3, 2, 70), True, torch.float32))
    first, second = results(triton.recurrence, inputs), results(triton.recurrence, inputs)
    assert all(torch.equal(first[name], second[name]) for name in first)


@runs_kernels
def test_module_with_kernels_equals_module_with_reference():
    torch.manual_seed(0)
    module = SRU(6, 5, 3).to(DEVICE)
    x = torch.randn(4, 3, 6, device=DEVICE, requires_grad=True)
    both = {}
    for backend in ("triton", "reference"):
        module.backend = backend
        h, c = module(x)
        both[backend] = [h, c, *torch.autograd.grad(h.sin().sum() + c.sum(), [x, *module.parameters()])]
    for ours, theirs in zip(both["triton"], both["reference"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter replaces the compiler")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("dtype", "projected"), [("bf16", False), ("fp32", True)])
def test_kernels_compile_for_real_gpus_and_prefetch(capability, dtype, projected, monkeypatch, tmp_path):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from train.sru import triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    like_u = dict.fromkeys(("u", "x", "h", "dh", "du", "dx"), f"*{dtype}")
    constants = {"T": 30, "PROJECTED": projected, "BLOCK": triton.BLOCK}
    for kernel in (triton._forward, triton._backward):
        types = {name: like_u.get(name, "i32" if name in "TBD" else "*fp32") for name in kernel.arg_names}
        aligned = [i for i, name in enumerate(types) if name not in ("B", *constants)]
        source = ASTSource(
            kernel,
            types | dict.fromkeys(constants, "constexpr"),
            constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
            attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
        )
        assembly = compile(source, target=GPUTarget("cuda", capability, 32), options=triton.LAUNCH).asm
        assert assembly["cubin"]
        assert "cp.async" in assembly["ptx"]


def on_device(inputs):
    return [None if tensor is None else tensor.to(DEVICE) for tensor in inputs]


def assert_kernels_equal_reference(inputs):
    from train.sru import triton

    assert triton.INTERPRETED == INTERPRETED
    assert_equals_reference(triton.recurrence, on_device(inputs), INTERPRETER_TOLERANCES if INTERPRETED else TOLERANCES)
