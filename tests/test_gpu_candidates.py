"""What might make a GPU faster: that it computes the same, as far as a CPU and Triton's interpreter can tell."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from extract.network.preprocess import PAPER, crop_of, crop_views, resize

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
CPU = torch.device("cpu")
SIZES = [(12, 16), (25, 31)]
"""Enlarged and reduced to 20 pixels. A program of the interpreter takes as long as a thousand of a GPU."""

runs_kernels = pytest.mark.skipif(
    not (INTERPRETED or torch.cuda.is_available()), reason="no GPU: runs where tests/train/sru/test_triton.py does"
)


@runs_kernels
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_one_kernel_resizes_crops_and_normalises(size):
    from benchmarks.gpu_resize import FrameCropper

    how = replace(PAPER, resize=20, crop=2)
    crops = [crop_of("v", view, 0) for view in ("center_flip", "random0")]
    frames = torch.from_numpy(np.random.default_rng(size).integers(0, 256, (1, *size, 3), dtype=np.uint8)).to(DEVICE)
    expected = crop_views(resize(frames, how), crops, how.crop)
    levels = FrameCropper(torch.uint8, DEVICE, how)(frames, crops)
    assert levels.shape == expected.shape
    assert (levels.int() - expected.int()).abs().max() <= 1
    normal = (levels / 255 - torch.tensor(how.mean, device=DEVICE)) / torch.tensor(how.std, device=DEVICE)
    torch.testing.assert_close(FrameCropper(torch.float32, DEVICE, how)(frames, crops), normal)


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="needs no interpreter")
def test_the_network_is_the_same_with_its_convolutions_given():
    from benchmarks.gpu_candidates import distance, relu_conv, relu_conv_add, resnet_forward
    from extract.network.backbones import build_forward
    from extract.network.weights import load_weights

    weights = load_weights("random:0", "resnet18")
    rows = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8))
    expected = build_forward(weights, device="cpu", precision="fp32", levels=("low", "mid", "high"))(rows)
    assert distance(resnet_forward(weights, CPU, torch.float32, relu_conv, relu_conv_add)(rows), expected) < 1e-6


@pytest.mark.skipif(INTERPRETED, reason="needs no interpreter")
def test_what_differs_is_not_timed():
    from benchmarks.gpu_candidates import Comparison, compare, side_by_side

    (heads,) = side_by_side("fp32", 8)(CPU)
    assert "times today's rate" in compare("heads", heads, CPU, 0.01)["said"]

    def never() -> None:
        raise AssertionError("it is timed")

    other = Comparison(of="a", count=1, today=never, candidate=never, difference=float("nan"), allowed=1.0)
    assert compare("idea", other, CPU, 0.01) == {
        "name": "idea, a", "said": "gives other results: nan apart, 1 allowed; not timed"
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="the interpreter replaces the compiler")
@pytest.mark.parametrize("to", ["u8", "fp16"])
def test_the_kernel_compiles_for_real_gpus(to, monkeypatch, tmp_path):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from benchmarks import gpu_resize

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = {"SIZE": 224, "TAPS_Y": 3, "TAPS_X": 3, "NORMALISED": to == "fp16", "BLOCK": gpu_resize.BLOCK}
    types = {"frames": "*u8", "rows": f"*{to}", "mean": "*fp32", "std": "*fp32", "scale_y": "fp32", "scale_x": "fp32"}
    kernel = gpu_resize._crop_lines
    source = ASTSource(
        kernel,
        {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names},
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
    )
    assert compile(source, target=GPUTarget("cuda", 90, 32), options=gpu_resize.LAUNCH).asm["cubin"]
