"""Videos that are copies of one another, or parts of one recording, told by their features.

Two videos are compared by the means of their frames, each channel in units of its deviation among all videos. Where
these are near, the frames decide whether both show the same moments. Shapes: N videos, F frames, C channels of all
levels together.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cache.common.progress import progress

NEAR: Final = 0.6
"""Similarity of means from which on frames are compared. Copies encoded anew and cropped or mirrored had 0.65 to 0.95;
the nearest video of another recording has 0.46 in the median (docs/doctor.md)."""

ONE_RECORDING: Final = 0.85
"""Similarity from which on two videos are taken for parts of one recording; such have 0.92 in the median."""

NEIGHBOURS: Final = 5
"""Nearest videos of other groups whose frames are compared."""

STANDS_OUT: Final = 0.8
"""Largest distance of a copy from its original, as a share of either one's distance from its third nearest group: where
all videos of a class look alike, their likeness says little. Means as like as EQUAL need not stand out."""

EQUAL: Final = 0.98

IN_ORDER: Final = 0.94
"""Least correlation between the places of a copy's frames and those of the original's frames most like them."""

LIKE: Final = 0.2
"""Least mean similarity of these frames; a frame is its difference from its video's mean."""

FEWEST_FRAMES: Final = 8
"""Frames below which their order says nothing: such videos are copies only if their features are equal."""

_NEAREST: Final = 64
"""Nearest videos that are looked through for three groups."""

_ROWS: Final = 512
"""Videos compared with all others at a time; bounds the memory."""


@dataclass(frozen=True)
class Pair:
    """Two videos that are alike, by their numbers."""

    first: int
    second: int
    similarity: float
    """Of their means; 1 is the most."""
    copy: bool
    """Whether they show the same moments; else they are parts of one recording."""


@dataclass(frozen=True)
class Space:
    """What features are measured in."""

    mean_C: NDArray[np.float32]
    scale_C: NDArray[np.float32]
    """1 / deviation, times a weight that makes the squared length of a difference 1 on average, each level's part the
    same. 0 for a channel that is constant."""

    @classmethod
    def of(cls, mean_NC: NDArray[np.float32], variance_NC: NDArray[np.float32], widths: Sequence[int]) -> "Space":
        """The space of these videos' means and variances over time; `widths` are the channels of each level."""
        mean_C, deviation_C = mean_NC.mean(axis=0), mean_NC.std(axis=0)
        least_C = np.abs(mean_C) * np.finfo(np.float16).eps
        # Where all videos have one mean, as a single one has, what varies over time tells how large a difference is.
        deviation_C = np.where(deviation_C > least_C, deviation_C, np.sqrt(variance_NC.mean(axis=0)))
        weight_C = np.concatenate([np.full(width, (width * len(widths)) ** -0.5) for width in widths])
        scale_C = np.divide(weight_C, deviation_C, out=np.zeros_like(weight_C), where=deviation_C > least_C)
        return cls(mean_C, scale_C.astype(np.float32))

    def directions(self, mean_NC: NDArray[np.float32]) -> NDArray[np.float32]:
        """Unit vectors `[N, C]`, whose products are the similarities."""
        difference_NC = mean_NC - self.mean_C
        difference_NC *= self.scale_C
        return _units(difference_NC)

    def motion(self, variance_NC: NDArray[np.float32]) -> NDArray[np.float32]:
        """How far frames are from their video's mean `[N]`, where the videos' means differ by 1."""
        return np.sqrt((variance_NC * self.scale_C**2).sum(axis=1))

    def same_moments(self, one_FC: NDArray[np.float32], other_FC: NDArray[np.float32]) -> float:
        """How like the frames of two videos are that show the same moments in the same order; else 0.

        One may be a part of the other.
        """
        short, long = sorted((one_FC, other_FC), key=len)
        if len(short) < FEWEST_FRAMES:
            return 0.0
        units = [_units((each - each.mean(axis=0)) * self.scale_C) for each in (short, long)]
        like_FF = units[0] @ units[1].T
        place_F, like = like_FF.argmax(axis=1), float(like_FF.max(axis=1).mean())
        if like < LIKE or np.ptp(place_F) == 0:
            return 0.0
        return like if np.corrcoef(np.arange(len(short)), place_F)[0, 1] >= IN_ORDER else 0.0


def _units(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vectors `[N, C]`, divided by their lengths in place."""
    vectors /= np.maximum(np.sqrt(np.einsum("nc,nc->n", vectors, vectors)), np.float32(1e-12))[:, None]
    return vectors


def near_pairs(
    unit_NC: NDArray[np.float32], group_N: NDArray[np.int64], same_moments: Callable[[int, int], float]
) -> list[Pair]:
    """Pairs of different groups that are copies or parts of one recording: each video with its nearest NEIGHBOURS."""
    found: dict[tuple[int, int], float] = {}
    # Similarity of the nearest video of the third group: what is usual among such videos.
    usual_N = np.full(len(unit_NC), -1.0)
    count = min(_NEAREST, len(unit_NC))
    for start in range(0, len(unit_NC), _ROWS):
        like_BN = unit_NC[start : start + _ROWS] @ unit_NC.T
        like_BN[group_N[start : start + _ROWS, None] == group_N] = -1
        for row in np.flatnonzero(like_BN.max(axis=1) >= NEAR).tolist():
            like_N = like_BN[row]
            nearest = np.argpartition(-like_N, count - 1)[:count]
            nearest = nearest[np.argsort(-like_N[nearest], kind="stable")]
            places = np.sort(np.unique(group_N[nearest], return_index=True)[1])
            usual_N[start + row] = like_N[nearest[places[2]]] if len(places) > 2 else -1
            for column in nearest[:NEIGHBOURS].tolist():
                if like_N[column] >= NEAR:
                    found[min(start + row, column), max(start + row, column)] = float(like_N[column])
    moments: dict[tuple[int, int], float] = {}
    # Other clips of the recording that a copy is of are like it too, but not as much.
    best: dict[tuple[int, int], float] = defaultdict(float)
    with progress("comparing frames", len(found), "pairs") as bar:
        for (one, other), similarity in sorted(found.items()):
            usual = max(usual_N[one], usual_N[other])
            stands_out = similarity >= EQUAL or 1 - similarity <= STANDS_OUT**2 * (1 - usual)
            like = same_moments(one, other) if stands_out else 0.0
            moments[one, other] = like
            for key in ((one, int(group_N[other])), (other, int(group_N[one]))):
                best[key] = max(best[key], like)
            bar.update(len(moments))
    pairs = []
    for (one, other), like in moments.items():
        most_like = like == best[one, int(group_N[other])] == best[other, int(group_N[one])]
        pairs.append(Pair(one, other, found[one, other], copy=like > 0 and most_like))
    return [pair for pair in pairs if pair.copy or pair.similarity >= ONE_RECORDING]


def joined(count: int, pairs: Iterable[tuple[int, int]]) -> NDArray[np.int64]:
    """`[count]`: the smallest number that each number is joined with by some of the pairs, or by a chain of them."""
    root = list(range(count))

    def find(number: int) -> int:
        while root[number] != number:
            root[number] = root[root[number]]
            number = root[number]
        return number

    for pair in pairs:
        low, high = sorted(map(find, pair))
        root[high] = low
    return np.array([find(number) for number in range(count)], dtype=np.int64)
