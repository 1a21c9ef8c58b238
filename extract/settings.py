"""What extraction is asked for: one frozen record that decides the features, and how it names them."""

from typing import Final, Literal

Precision = Literal["fp32", "bf16", "fp16"]

BACKBONES: Final = ("resnet34", "resnet18")
"""Networks of one family whose levels have the same widths."""

IMAGENET: Final = "imagenet1k_v1"
"""torchvision's first ImageNet weights, the ones of the paper's time."""

VIEWS_SEED: Final = 0
