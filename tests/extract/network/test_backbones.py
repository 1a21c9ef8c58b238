"""The trunk against torchvision's own network, and features that depend on nothing but their frame."""

import pytest
import torch
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor

from extract.network.backbones import build_forward, split_levels
from extract.network.preprocess import Normalise
from extract.network.weights import Weights, load_weights

LEVELS = ("low", "mid", "high")


@pytest.fixture(scope="module")
def weights() -> Weights:
    return load_weights("random:3", "resnet18")


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    return torch.randint(0, 256, (4, 224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def reference(weights: Weights, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    net = getattr(models, weights.backbone)(weights=None).eval()
    net.load_state_dict(dict(weights.tensors), strict=False)
    layers = {"layer2": "low", "layer3": "mid", "layer4": "high"}
    with torch.no_grad():
        maps = create_feature_extractor(net, layers)(Normalise("cpu", torch.float32)(rows).contiguous())
    return {level: maps[level].mean((2, 3)) for level in LEVELS}


def lively(weights: Weights) -> Weights:
    """The same with BatchNorm that does something, as trained ones do."""
    random = torch.Generator().manual_seed(1)
    tensors = {
        name: value + (torch.rand(value.shape, generator=random) - 0.3) * 0.5 if value.ndim == 1 else value
        for name, value in weights.tensors.items()
    }
    return Weights(text="test", backbone=weights.backbone, tensors=tensors, sha256="")


def test_fp32_equals_torchvision_and_bf16_points_the_same_way(weights, rows):
    expected = reference(lively(weights), rows)
    for precision in ("fp32", "bf16"):
        got = build_forward(lively(weights), device="cpu", precision=precision, levels=LEVELS)(rows)
        assert got.shape == (4, 896)
        assert got.dtype == torch.float16
        for level, columns in split_levels(LEVELS).items():
            ours = got[:, columns].float()
            if precision == "fp32":
                scale = expected[level].abs().amax()
                assert (ours - expected[level]).abs().max() <= 1e-3 * scale
            assert torch.cosine_similarity(ours, expected[level]).min() > 0.999


def test_levels_not_asked_for_are_not_computed(weights, rows):
    everything = build_forward(weights, device="cpu", precision="fp32", levels=LEVELS)(rows)
    low = build_forward(weights, device="cpu", precision="fp32", levels=("low",))(rows)
    assert torch.equal(low, everything[:, :128])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_row_does_not_depend_on_its_place_or_its_neighbours(weights, rows, precision):
    forward = build_forward(weights, device="cpu", precision=precision, levels=LEVELS)
    packed = forward(rows)
    for shift in (1, 3):
        alone = torch.zeros_like(rows)
        alone[shift] = rows[0]
        assert torch.equal(forward(alone)[shift], packed[0])
        assert torch.equal(forward(rows.roll(shift, 0)), packed.roll(shift, 0))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_number_of_threads_does_not_change_a_bit(weights, rows, precision):
    forward = build_forward(weights, device="cpu", precision=precision, levels=LEVELS)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(forward(rows))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_values_beyond_float16_come_out_as_infinities(weights, rows):
    huge = {name: value * 1e6 if name == "bn1.weight" else value for name, value in weights.tensors.items()}
    forward = build_forward(
        Weights(text="huge", backbone="resnet18", tensors=huge, sha256=""),
        device="cpu",
        precision="fp32",
        levels=LEVELS,
    )
    assert torch.isinf(forward(rows)).any()
