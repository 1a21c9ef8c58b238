"""Frames to the network's input as in the paper (section 4.2), equal to torchvision's own transform.

Shorter side to 256 (bilinear, antialiased), a 224 x 224 crop, [0, 1], ImageNet's mean and deviation. The resized
pixels are rounded to whole 8-bit levels, as torchvision does for 8-bit frames and PIL images: a frame stays a quarter
of the size, and what is cached agrees with what everybody else computes.

Tolerance: bit-identical to torchvision's v2 transform of the same frames on the same device. To what PIL, torchvision's
v1 transform or another device make of them: one level of 255 in the resized pixels, since some round between the two
passes of the resize and some only after it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from extract.views import Crop

if TYPE_CHECKING:
    from torch import Tensor, dtype

RESIZED_SHORTER_SIDE = 256
CROP = 224
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

MAX_RESIZED_PIXELS = 64 * RESIZED_SHORTER_SIDE**2
"""Narrower pictures than 1 : 64 would take more memory resized than they are worth."""

TRANSFORM = "resize 256 bilinear antialias uint8, crop 224, imagenet mean std, v1"
"""What the fingerprint calls this file's arithmetic; changes whenever the numbers do."""


def resized_size(height: int, width: int) -> tuple[int, int]:
    """Height and width after the shorter side became 256, rounded as torchvision does."""
    short, long = sorted((height, width))
    longer = int(RESIZED_SHORTER_SIDE * long / short)
    return (RESIZED_SHORTER_SIDE, longer) if height <= width else (longer, RESIZED_SHORTER_SIDE)


def resize(frames_FHW3: "Tensor") -> "Tensor":
    """Frames [F, H, W, 3] uint8 -> [F, 3, h, w] uint8 with the shorter side at 256; memory stays channels-last."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    frames_F3HW = frames_FHW3.permute(0, 3, 1, 2)
    return functional.resize(
        frames_F3HW, [RESIZED_SHORTER_SIDE], interpolation=InterpolationMode.BILINEAR, antialias=True
    )


def crop_views(resized_F3HW: "Tensor", crops: Sequence[Crop]) -> "Tensor":
    """Resized frames -> [F, V, 224, 224, 3] uint8, one row of views for each frame."""
    import torch

    frames, _, height, width = resized_F3HW.shape
    rows = torch.empty((frames, len(crops), CROP, CROP, 3), dtype=torch.uint8, device=resized_F3HW.device)
    for view, crop in enumerate(crops):
        top, left = crop.offsets(height, width, CROP)
        window_F3HW = resized_F3HW[:, :, top : top + CROP, left : left + CROP]
        rows[:, view] = (window_F3HW.flip(3) if crop.flip else window_F3HW).permute(0, 2, 3, 1)
    return rows


class Normalise:
    """Crops to the network's input. Its constants are on the device from the start: a captured graph can hold it."""

    def __init__(self, device: str, to: "dtype") -> None:
        """`to`: the number format of the result."""
        import torch

        self._to = to
        self._mean = torch.tensor(MEAN, device=device).repeat(CROP)
        self._std = torch.tensor(STD, device=device).repeat(CROP)

    def __call__(self, rows_BHW3: "Tensor") -> "Tensor":
        """[B, 224, 224, 3] uint8 -> [B, 3, 224, 224], channels-last; computed in float32 in torchvision's order."""
        import torch

        # Lines of 672 values rather than pixels of 3: a processor computes whole vectors, four times as fast.
        lines = rows_BHW3.flatten(2).to(torch.float32).mul_(1 / 255).sub_(self._mean).div_(self._std)
        return lines.to(self._to).view(rows_BHW3.shape).permute(0, 3, 1, 2)
