"""A candidate: resize, crop, mirror and normalise uint8 frames in one Triton kernel, as `extract.network.preprocess`.

A program makes one line of one crop. It reads the frames where they are and keeps nothing in between, where torchvision
converts all frames to float32 in another layout, resizes them whole, converts back and then takes the crop.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from extract.network.preprocess import PAPER, Crop, Preprocess

BLOCK = 256
LAUNCH = {"enable_fp_fusion": True}
"""Set explicitly because Triton's default is changing."""


@triton.jit
def _reach(place, scale, size):
    """Source pixels [first, last) of an antialiased bilinear resize, and the middle of their triangle of weights."""
    middle = scale * (place + 0.5)
    support = tl.maximum(scale, 1.0)
    first = tl.maximum((middle - support + 0.5).to(tl.int32), 0)
    last = tl.minimum((middle + support + 0.5).to(tl.int32), size)
    return first, last, middle


@triton.jit
def _weight(pixel, last, middle, scale):
    return tl.where(pixel < last, tl.maximum(1.0 - tl.abs(pixel + 0.5 - middle) / tl.maximum(scale, 1.0), 0.0), 0.0)


@triton.jit(do_not_specialize=["top", "left", "flip"])
def _crop_lines(
    frames, rows, mean, std, height, width, scale_y, scale_x, top, left, flip, view, views,
    SIZE: tl.constexpr, TAPS_Y: tl.constexpr, TAPS_X: tl.constexpr, NORMALISED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    y, f = tl.program_id(0), tl.program_id(1).to(tl.int64)
    x = tl.arange(0, BLOCK)
    inside = x < SIZE
    first_y, last_y, middle_y = _reach(top + y, scale_y, height)
    first_x, last_x, middle_x = _reach(left + tl.where(flip != 0, SIZE - 1 - x, x), scale_x, width)
    red = tl.zeros([BLOCK], tl.float32)
    green = tl.zeros([BLOCK], tl.float32)
    blue = tl.zeros([BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for j in range(TAPS_Y):
        line = tl.minimum(first_y + j, height - 1)
        share = _weight(first_y + j, last_y, middle_y, scale_y)
        for k in range(TAPS_X):
            weight = share * _weight(first_x + k, last_x, middle_x, scale_x)
            pixel = frames + ((f * height + line) * width + tl.minimum(first_x + k, width - 1)) * 3
            red += weight * tl.load(pixel, mask=inside, other=0).to(tl.float32)
            green += weight * tl.load(pixel + 1, mask=inside, other=0).to(tl.float32)
            blue += weight * tl.load(pixel + 2, mask=inside, other=0).to(tl.float32)
            total += weight
    total = tl.where(inside, total, 1.0)
    out = rows + (((f * views + view) * SIZE + y) * SIZE + x) * 3
    red, green, blue = tl.floor(red / total + 0.5), tl.floor(green / total + 0.5), tl.floor(blue / total + 0.5)
    if NORMALISED:
        red = (red / 255 - tl.load(mean)) / tl.load(std)
        green = (green / 255 - tl.load(mean + 1)) / tl.load(std + 1)
        blue = (blue / 255 - tl.load(mean + 2)) / tl.load(std + 2)
    tl.store(out, red.to(rows.dtype.element_ty), mask=inside)
    tl.store(out + 1, green.to(rows.dtype.element_ty), mask=inside)
    tl.store(out + 2, blue.to(rows.dtype.element_ty), mask=inside)


class FrameCropper:
    """Crops of frames of any size, in `dtype`: uint8, or a float for the network's normalised input."""

    def __init__(self, dtype: torch.dtype, device: torch.device, how: Preprocess = PAPER) -> None:
        self.dtype, self.how = dtype, how
        self.mean, self.std = torch.tensor(how.mean, device=device), torch.tensor(how.std, device=device)

    def __call__(self, frames_FHW3: Tensor, crops: Sequence[Crop]) -> Tensor:
        """Frames [F, H, W, 3] uint8 -> crops [F, V, h, w, 3]."""
        frames, height, width, _ = frames_FHW3.shape
        resized = self.how.resized_size(height, width)
        scales = height / resized[0], width / resized[1]
        taps = [2 * math.ceil(max(scale, 1.0)) + 1 for scale in scales]
        size = self.how.crop
        rows_FVHW3 = torch.empty(frames, len(crops), size, size, 3, dtype=self.dtype, device=frames_FHW3.device)
        for view, crop in enumerate(crops):
            _crop_lines[size, frames](
                frames_FHW3, rows_FVHW3, self.mean, self.std, height, width, *scales,
                *crop.offsets(*resized, size), int(crop.flip), view, len(crops),
                size, *taps, self.dtype.is_floating_point, BLOCK, **LAUNCH,
            )  # fmt: skip
        return rows_FVHW3
