"""Views: which crop of a video, mirrored or not; one choice for the whole video. Pure numbers, no pixels."""

import hashlib
import re
from dataclasses import dataclass

from cache.schema import CENTER_VIEW

CENTER_FLIP_VIEW = "center_flip"
MAX_VIEWS = 64

_RANDOM = re.compile(r"random(?::(\d{1,4}))?")


@dataclass(frozen=True)
class Crop:
    """Where a view lies in a resized frame, independent of the frame's size."""

    top: float
    """Of the rows that the crop can move by, the share above it: [0, 1)."""
    left: float
    """The same for columns."""
    flip: bool
    """Mirrored left to right."""
    centered: bool = False
    """In the middle as torchvision rounds it; `top` and `left` do not count."""

    def offsets(self, height: int, width: int, size: int) -> tuple[int, int]:
        """First row and column of the crop of `size` x `size` in a frame of `height` x `width`."""
        if self.centered:
            return round((height - size) / 2.0), round((width - size) / 2.0)
        return int(self.top * (height - size + 1)), int(self.left * (width - size + 1))


def parse_views(text: str) -> tuple[str, ...]:
    """View names of "center,center_flip,random:2": center, center_flip, random0, random1.

    ValueError where `center` is not first, a name is not known or stands twice.
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
        raise ValueError(f"views {text!r}: a view stands twice, or there are more than {MAX_VIEWS}")
    return tuple(names)


def crop_of(video_id: str, view: str, seed: int) -> Crop:
    """The crop of one view of one video: always the same for the same video, view and seed."""
    if view in (CENTER_VIEW, CENTER_FLIP_VIEW):
        return Crop(top=0.0, left=0.0, flip=view == CENTER_FLIP_VIEW, centered=True)
    digest = hashlib.sha256(f"{seed}\n{view}\n{video_id}".encode()).digest()
    top, left = (int.from_bytes(digest[start : start + 4], "little") / 2**32 for start in (0, 4))
    return Crop(top=top, left=left, flip=bool(digest[8] & 1))
