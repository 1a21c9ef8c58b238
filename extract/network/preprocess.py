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
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cache.fingerprint import CENTER_VIEW

if TYPE_CHECKING:
    from torch import Tensor, dtype

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

NARROWEST = 64
"""Pictures narrower than 1 : 64 are refused: resized they would take too much memory."""

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


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How weights were trained to see pictures; the defaults are those of the paper's."""

    resize: int = 256
    """Pixels of the shorter side after resizing."""
    crop: int = 224
    """Pixels of each side of a crop."""
    interpolation: str = "bilinear"
    """Or bicubic."""
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    squash: bool = False
    """Resize both sides to `resize`, whatever the picture's shape."""

    def __str__(self) -> str:
        """The fingerprint's name for this file's arithmetic; has to change whenever the numbers do."""
        colours = f"mean {_numbers(self.mean)} std {_numbers(self.std)}"
        return (
            f"resize {self.resize}{' squash' if self.squash else ''} {self.interpolation} antialias uint8, "
            f"crop {self.crop}, {'imagenet mean std' if (self.mean, self.std) == (MEAN, STD) else colours}, v1"
        )

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing, rounded as torchvision does."""
        short, long = sorted((height, width))
        longer = self.resize if self.squash else int(self.resize * long / short)
        return (self.resize, longer) if height <= width else (longer, self.resize)

    def is_too_narrow(self, height: int, width: int) -> bool:
        """Whether a resized picture would take too much memory."""
        return math.prod(self.resized_size(height, width)) > NARROWEST * self.resize**2


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.6g}" for value in values)


PAPER: Final = Preprocess()


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


def resize(frames_FHW3: "Tensor", how: Preprocess = PAPER) -> "Tensor":
    """Frames [F, H, W, 3] uint8 -> [F, 3, h, w] uint8; memory stays channels-last."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    frames_F3HW = frames_FHW3.permute(0, 3, 1, 2)
    size = [how.resize, how.resize] if how.squash else [how.resize]
    return functional.resize(frames_F3HW, size, interpolation=InterpolationMode(how.interpolation), antialias=True)


def crop_views(resized_F3HW: "Tensor", crops: Sequence[Crop], size: int = PAPER.crop) -> "Tensor":
    """Resized frames -> [F, V, size, size, 3] uint8, one row of views for each frame."""
    import torch

    frames, _, height, width = resized_F3HW.shape
    rows = torch.empty((frames, len(crops), size, size, 3), dtype=torch.uint8, device=resized_F3HW.device)
    for view, crop in enumerate(crops):
        top, left = crop.offsets(height, width, size)
        window_F3HW = resized_F3HW[:, :, top : top + size, left : left + size]
        rows[:, view] = (window_F3HW.flip(3) if crop.flip else window_F3HW).permute(0, 2, 3, 1)
    return rows


class Normalise:
    """Crops to the network's input. Its constants are on the device from the start: a captured graph can hold it."""

    def __init__(self, device: str, to: "dtype", how: Preprocess = PAPER) -> None:
        """`to`: the number format of the result."""
        import torch

        self._to = to
        self._mean = torch.tensor(how.mean, device=device).repeat(how.crop)
        self._std = torch.tensor(how.std, device=device).repeat(how.crop)

    def __call__(self, rows_BHW3: "Tensor") -> "Tensor":
        """[B, h, w, 3] uint8 -> [B, 3, h, w], channels-last; computed in float32 in torchvision's order."""
        import torch

        # Whole lines rather than pixels of 3: a processor computes whole vectors, four times as fast.
        lines = rows_BHW3.flatten(2).to(torch.float32).mul_(1 / 255).sub_(self._mean).div_(self._std)
        return lines.to(self._to).view(rows_BHW3.shape).permute(0, 3, 1, 2)
