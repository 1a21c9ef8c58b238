"""Features against the library's own network and transform, and features that depend on nothing but their frame."""

from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import timm
import torch
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor

from extract.network.architecture import architecture, timm_network
from extract.network.backbones import build_forward, columns_of
from extract.network.preprocess import Normalise, crop_of, crop_views, resize
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
    return replace(weights, tensors=tensors)


def test_fp32_equals_torchvision_and_bf16_points_the_same_way(weights, rows):
    expected = reference(lively(weights), rows)
    for precision in ("fp32", "bf16"):
        got = build_forward(lively(weights), device="cpu", precision=precision, levels=LEVELS)(rows)
        assert got.shape == (4, 896)
        assert got.dtype == torch.float16
        for level, columns in columns_of(weights, LEVELS).items():
            ours = got[:, columns].float()
            if precision == "fp32":
                scale = expected[level].abs().amax()
                assert (ours - expected[level]).abs().max() <= 1e-3 * scale
            assert torch.cosine_similarity(ours, expected[level]).min() > 0.999


def test_the_papers_network_computes_what_it_always_did_to_the_bit(rows):
    """Against the folded ResNet written out, as it was before other backbones."""
    rows = rows[:2]
    weights = lively(load_weights("random:3", "resnet18"))
    net = models.resnet18(weights=None).eval()
    net.load_state_dict(dict(weights.tensors), strict=False)
    pairs = [(net, "conv1", "bn1")]
    for block in (block for layer in (net.layer1, net.layer2, net.layer3, net.layer4) for block in layer):
        pairs += [(block, "conv1", "bn1"), (block, "conv2", "bn2")]
        pairs += [(block.downsample, "0", "1")] if block.downsample is not None else []
    for parent, conv, norm in pairs:
        setattr(parent, conv, fuse_conv_bn_eval(getattr(parent, conv), getattr(parent, norm)))
        setattr(parent, norm, torch.nn.Identity())
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        net.to(dtype).to(memory_format=torch.channels_last)
        with torch.inference_mode():
            x = Normalise("cpu", dtype)(rows)
            maps = [net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(x)))))]
            for layer in (net.layer2, net.layer3, net.layer4):
                maps.append(layer(maps[-1]))
            expected = torch.cat([each.mean((2, 3), dtype=torch.float32) for each in maps[1:]], dim=1).half()
        assert torch.equal(build_forward(weights, device="cpu", precision=precision, levels=LEVELS)(rows), expected)


SMALL = ["timm:test_resnet@64", "timm:test_efficientnet@64", "timm:test_convnext@64", "timm:test_vit@64"]
SLOW = ["resnet50", "convnext_tiny", "efficientnet_b0", "vit_b_16", "swin_t", "timm:vit_small_patch14_dinov2@56"]
OTHERS = [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


def theirs(
    weights: Weights, frames_FHW3: np.ndarray, pictures: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """What the library's own transform makes of frames; its own maps of `pictures`, averaged over the picture."""
    size = weights.preprocess.crop
    if weights.backbone.startswith("timm:"):
        net = timm_network(weights.backbone.removeprefix("timm:").partition("@")[0], size).eval()
        config = {**timm.data.resolve_model_data_config(net), "input_size": (3, size, size)}
        transform = timm.data.create_transform(**config, is_training=False)
    else:
        net = getattr(models, weights.backbone)(weights=None).eval()
        transform = models.get_model_weights(weights.backbone)["IMAGENET1K_V1"].transforms()
    missing, unknown = net.load_state_dict(dict(weights.tensors), strict=False)
    assert not unknown
    assert all(any(part in name for part in ("head", "fc", "classifier", "num_", "relative_p")) for name in missing)
    transformed = torch.stack([transform(PIL.Image.fromarray(frame)) for frame in frames_FHW3])
    with torch.no_grad():
        if weights.backbone.startswith("timm:"):
            blocks = len(getattr(net, "blocks", ())) if "vit" in weights.backbone else 0
            if blocks:
                wanted = [-(-blocks * third // 3) - 1 for third in (1, 2, 3)]
                maps = net.forward_intermediates(pictures, indices=wanted, norm=False, intermediates_only=True)
            else:
                maps = net.forward_intermediates(pictures, indices=3, intermediates_only=True)
                if "efficientnet" in weights.backbone:
                    maps[-1] = net.forward_features(pictures)  # the depths end with the last convolution
            return transformed, [each.mean((2, 3)) for each in maps]
        usual = architecture(weights.backbone, size).usual
        maps = create_feature_extractor(net, [depth.name for depth in usual])(pictures)
        if "vit" in weights.backbone:
            return transformed, [each[:, 1:].mean(1) for each in maps.values()]
        channels_last = "swin" in weights.backbone
        return transformed, [
            each.mean((1, 2) if channels_last and name.startswith("features") else (2, 3))
            for name, each in maps.items()
        ]


@pytest.mark.parametrize("backbone", OTHERS)
def test_other_backbones_equal_their_library(backbone):
    weights = lively(load_weights("random:2", backbone))
    random, (height, width) = np.random.default_rng(0), (90, 120)
    smooth = np.linspace(0, 200, width)[None, None, :, None] + random.normal(20, 15, (2, height, width, 3))
    frames = smooth.clip(0, 255).astype(np.uint8)
    how = weights.preprocess
    crops = crop_views(resize(torch.from_numpy(frames), how), [crop_of("v", "center", 0)], how.crop)[:, 0]
    pictures = Normalise("cpu", torch.float32, how)(crops).contiguous()
    transformed, expected = theirs(weights, frames, pictures)
    # Theirs were resized by PIL: a pixel may be one level of 255 away.
    assert (transformed - pictures).abs().mul(torch.tensor(how.std)[:, None, None] * 255).max() < 1.01
    got = build_forward(weights, device="cpu", precision="fp32", levels=LEVELS)(crops)
    for columns, level in zip(columns_of(weights, LEVELS).values(), expected, strict=True):
        assert torch.isfinite(got[:, columns]).all()
        assert (got[:, columns].float() - level).norm() <= 1e-3 * level.norm()


@pytest.mark.parametrize("backbone", OTHERS)
def test_a_row_of_another_backbone_does_not_depend_on_its_place_or_its_neighbours(backbone):
    weights = load_weights("random:2", backbone)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 256, (4, *[weights.preprocess.crop] * 2, 3), dtype=torch.uint8, generator=generator)
    for precision in ("fp32", "bf16"):
        forward = build_forward(weights, device="cpu", precision=precision, levels=LEVELS)
        packed, alone = forward(rows), torch.zeros_like(rows)
        alone[3] = rows[0]
        assert torch.equal(forward(alone)[3], packed[0])
        assert torch.equal(forward(rows.roll(1, 0)), packed.roll(1, 0))


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
