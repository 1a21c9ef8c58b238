"""What every cache holds: the levels, their widths, the number format, the format's version."""

from typing import Final, Literal, get_args

Level = Literal["low", "mid", "high"]

LEVELS: Final[tuple[Level, ...]] = get_args(Level)
"""From shallow to deep: ResNet-34's layer2, layer3, layer4 (paper, section 4.2)."""

CHANNELS: Final[dict[Level, int]] = {"low": 128, "mid": 256, "high": 512}
"""Width of each level's spatial mean (equation 7); the same for ResNet-18."""

DTYPE: Final = "float16"
"""How features are stored; they are computed and averaged in float32."""

FORMAT_VERSION: Final = 1
"""Grows when the files of a cache change in a way that older code would misread."""

CENTER_VIEW: Final = "center"
"""View 0 of every cache, the one that testing uses."""
