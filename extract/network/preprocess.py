"""Frames to the network's input as in the paper (section 4.2), equal to torchvision's own transform.

A view is a crop of a video, mirrored or not, the same for all its frames. The transform: shorter side to 256 (bilinear,
antialiased), a 224 x 224 crop, [0, 1], ImageNet's mean and deviation. The resized pixels are rounded to whole 8-bit
levels, as torchvision does for 8-bit frames and PIL images: a frame stays a quarter of the size, and cached features
agree with those of other implementations.

Tolerance: bit-identical to torchvision's v2 transform of the same frames on the same device. Against PIL, torchvision's
v1 transform or another device: one level of 255 in the resized pixels, since some round between the two passes of the
resize and some only after it.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cache.fingerprint import CENTER_VIEW

if TYPE_CHECKING:
    from torch import Tensor, dtype

RESIZED_SHORTER_SIDE = 256
CROP = 224
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

MAX_RESIZED_PIXELS = 64 * RESIZED_SHORTER_SIDE**2
"""Pictures narrower than 1 : 64 are refused: resized they would take too much memory."""

TRANSFORM = "resize 256 bilinear antialias uint8, crop 224, imagenet mean std, v1"
"""The fingerprint's name for this file's arithmetic; has to change whenever the numbers do."""

CENTER_FLIP_VIEW = "center_flip"
MAX_VIEWS = 64

_RANDOM = re.compile(r"random(?::(\d{1,4}))?")


@dataclass(frozen=True)
class Crop:
    """Where a view lies in a resized frame, independent of the frame's size."""

    top: float
    """Position from top to bottom, in [0, 1): 0 is the topmost crop."""
    left: float
    """Position from left to right, in [0, 1)."""
    flip: bool
    """Mirrored left to right."""
    centered: bool = False
    """In the middle, as torchvision rounds it; `top` and `left` are ignored."""

    def offsets(self, height: int, width: int, size: int) -> tuple[int, int]:
        """First row and column of the crop of `size` x `size` in a frame of `height` x `width`."""
        if self.centered:
            return round((height - size) / 2.0), round((width - size) / 2.0)
        return int(self.top * (height - size + 1)), int(self.left * (width - size + 1))


def parse_views(text: str) -> tuple[str, ...]:
    """View names of "center,center_flip,random:2": center, center_flip, random0, random1.

    Raises ValueError if `center` is not first, or a name is unknown or repeated.
    """
    names: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        random = _RANDOM.fullmatch(part)
        if part in (CENTER_VIEW, CENTER_FLIP_VIEW):
            names.append(part)
        elif random:
            names += [f"random{index}" for index in range(int(random[1] or 1))]
        else:
            raise ValueError(f"view {part!r} is not one of center, center_flip, random:COUNT")
    if not names or names[0] != CENTER_VIEW:
        raise ValueError(f"views {text!r}: the first one has to be center, which testing uses")
    if len(set(names)) != len(names) or len(names) > MAX_VIEWS:
        raise ValueError(f"views {text!r}: a view is named twice, or there are more than {MAX_VIEWS}")
    return tuple(names)


def crop_of(video_id: str, view: str, seed: int) -> Crop:
    """The crop of one view of one video: always the same for the same video, view and seed."""
    if view in (CENTER_VIEW, CENTER_FLIP_VIEW):
        return Crop(top=0.0, left=0.0, flip=view == CENTER_FLIP_VIEW, centered=True)
    digest = hashlib.sha256(f"{seed}\n{view}\n{video_id}".encode()).digest()
    top, left = (int.from_bytes(digest[start : start + 4], "little") / 2**32 for start in (0, 4))
    return Crop(top=top, left=left, flip=bool(digest[8] & 1))


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
