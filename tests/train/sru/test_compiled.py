"""Code that LLVM makes of a kernel: rounding, functions, what lies at the edges of numbers."""

import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from train.sru import compiled
from train.sru.compiled import At, Kernel

BFLOATS = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
"""Every number that bfloat16 has, infinities and NaNs too."""


def _copy(at: At) -> None:
    at["y", 0] = at["x", 0]


def _sigmoid(at: At) -> None:
    at["y", 0], at["z", 0] = at["x", 0].sigmoid()


def _tanh(at: At) -> None:
    at["y", 0], at["z", 0] = at["x", 0].tanh()


COPY, SIGMOID, TANH = Kernel(_copy), Kernel(_sigmoid), Kernel(_tanh)


def copied(x: Tensor, dtype: torch.dtype) -> Tensor:
    y = torch.empty(x.shape, dtype=dtype)
    COPY((1, 1, len(x)), {"step": {"x": x, "y": y}})
    return y


def applied(kernel: Kernel, x: Tensor) -> tuple[Tensor, Tensor]:
    y, z = torch.empty_like(x), torch.empty_like(x)
    kernel((1, 1, len(x)), {"step": {"x": x, "y": y, "z": z}})
    return y, z


def test_every_bfloat16_is_read_as_the_number_it_is():
    ours, theirs = copied(BFLOATS, torch.float32), BFLOATS.float()
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours[~ours.isnan()], theirs[~theirs.isnan()])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_numbers_are_rounded_as_torch_rounds_them(dtype):
    """Every exponent, ties among them, infinities, NaNs with their last bits set, numbers too large or too small."""
    halves = BFLOATS.float().view(torch.int32)
    x = torch.cat([halves + add for add in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)]).view(torch.float32)
    ours, theirs = copied(x, dtype), x.to(dtype)
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours[~ours.isnan()], theirs[~theirs.isnan()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sigmoid_and_the_rest_to_1_keep_their_digits_where_they_are_small(dtype):
    x = torch.linspace(-80, 80, 100_001, dtype=dtype)
    epsilon = torch.finfo(dtype).eps
    for ours, theirs in zip(applied(SIGMOID, x), (x.double().sigmoid(), (-x.double()).sigmoid()), strict=True):
        relative = ((ours.double() - theirs) / theirs).abs()
        assert relative.max() <= 4 * epsilon


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tanh_and_its_derivative(dtype):
    x = torch.linspace(-20, 20, 100_001, dtype=dtype)
    tanh, slope = applied(TANH, x)
    assert (tanh.double() - x.double().tanh()).abs().max() <= 2 * torch.finfo(dtype).eps
    assert (slope.double() - 1 / x.double().cosh().square()).abs().max() <= 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sigmoid_at_the_ends_and_of_what_is_no_number(dtype):
    x = torch.tensor([-math.inf, -1e30, -0.0, 0.0, 1e30, math.inf, math.nan], dtype=dtype)
    share, rest = applied(SIGMOID, x)
    assert share[2:6].tolist() == [0.5, 0.5, 1, 1]
    assert rest[:4].tolist() == [1, 1, 0.5, 0.5]
    assert share[:2].max() < 1e-37
    assert rest[4:6].max() < 1e-37
    assert math.isnan(share[6])
    assert math.isnan(rest[6])


def test_a_nan_with_any_last_bits_stays_one():
    x = (0x7F800001 + torch.arange(1 << 23, dtype=torch.int32)[:: 1 << 10]).view(torch.float32)
    assert x.isnan().all()
    assert all(each.isnan().all() for each in (*applied(SIGMOID, x), *applied(TANH, x)))


def test_kernels_run_on_torchs_own_threads_where_it_has_openmp():
    if not torch.backends.openmp.is_available():
        pytest.skip("this torch is built without OpenMP")
    assert compiled._team() is not None


@pytest.mark.slow
def test_other_backends_need_no_llvmlite():
    code = """
import sys
sys.modules["llvmlite"] = None
import torch
from train.sru import SRU
print(SRU(6, 5, 2, backend="reference")(torch.randn(4, 2, 6))[0].shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "torch.Size([4, 2, 5])"), done.stderr


@pytest.mark.slow
def test_no_compiler_is_looked_for():
    """Nothing is on the path, and nothing is started."""
    code = """
import subprocess, sys, torch
def audit(event, _):
    assert event not in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"), event
from train.sru import SRU
sys.addaudithook(audit)
x = torch.randn(4, 2, 6, requires_grad=True)
SRU(6, 5, 2)(x)[0].sum().backward()
print(torch.isfinite(x.grad).all().item())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PATH": "/nowhere"}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr
