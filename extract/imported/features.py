"""From arrays that another program wrote to the features of a video: whose they are, which level, when, in float16.

Shapes: V views, F frames, C channels.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from cache.common.errors import DatasetError
from cache.common.text import some
from cache.dataset import Video
from cache.fingerprint import LEVELS, Level
from cache.ledger import FileState, Outcome
from extract.imported.arrays import Array, ForeignArray
from extract.pipeline import VideoFeatures, failed

_OTHERS: Final = frozenset(("pts_seconds", "timestamps_ms", "fps", "views"))
"""Names of arrays that come beside features: those of `mrrn cache export`, and of the program video_features."""

SAMPLED: Final = 15
"""Videos that are read to find out which shape most have."""

_MOST_LOST: Final = 1e-2
"""Share of an array's norm that may be lost in float16."""

VideoArrays = Mapping[str, ForeignArray]
"""The arrays of one video by their own names."""


@dataclass(frozen=True, kw_only=True)
class ImportRules:
    """How arrays become features."""

    arrays: Mapping[Level, str]
    """The name of each level's array."""
    fps: float | None
    """Features a second where the files have no times; None if the user did not say."""
    views: int | None = None
    """As many as all videos have to have; None if it is not known yet."""
    widths: Mapping[Level, int] | None = None
    """Channels that they have to have."""


def by_video(found: Mapping[str, ForeignArray], videos: Iterable[Video]) -> tuple[dict[str, VideoArrays], list[str]]:
    """The arrays of each video that has some, by its id, and the names of those that belong to none.

    An array belongs to the video whose id or path its name begins with; what comes behind '/' or '_' is the array's own
    name. Where no array fits so, folders do not count: other programs name files by the video's stem alone. Raises
    `DatasetError` if no array belongs to a video, or two of one name.
    """
    whole = {name: video.id for video in videos for name in (video.id, video.path)}
    stems: dict[str, str] = {}
    for each, video_id in whole.items():
        stem = each.rpartition("/")[2]
        stems[stem] = video_id if stems.get(stem, video_id) == video_id else ""
    for known in (whole, stems):
        arrays: dict[str, dict[str, ForeignArray]] = {}
        strange = []
        for name, array in found.items():
            video, own = _owner(name, known, by_stem=known is stems)
            if not video:
                strange.append(name)
            elif (other := arrays.setdefault(video, {}).setdefault(own, array)) is not array:
                raise DatasetError(f"{other} and {array} are both of video {video!r}: move one of them away")
        if arrays:
            return dict(arrays), strange
    raise DatasetError(
        f"no array is of a listed video: the arrays are {some(list(found)) or 'none'}, the videos {some(list(whole))}; "
        "an array is named by its video's id, such as ID.npy, ID_rgb.npy, ID.npz, or ID in an HDF5 file"
    )


def _owner(name: str, known: Mapping[str, str], *, by_stem: bool) -> tuple[str, str]:
    """The video whose id `name` begins with, the longest one, and the rest; empty if there is none."""
    end = len(name)
    while end > 0:
        start = name.rfind("/", 0, end) + 1 if by_stem else 0
        if video := known.get(name[start:end]):
            return video, name[end + 1 :]
        end = max(name.rfind("/", 0, end), name.rfind("_", 0, end))
    return "", ""


def choose_arrays(videos: Mapping[str, VideoArrays]) -> dict[Level, str]:
    """Which array is which level: those named so, or the only one is `high`. Raises `DatasetError` for any others."""
    names = {name for each in videos.values() for name, array in each.items() if not array.problem} - _OTHERS
    if levels := [level for level in LEVELS if level in names]:
        return {level: level for level in levels}
    if len(names) == 1:
        return {"high": names.pop()}
    if not names:
        next(iter(next(iter(videos.values())).values())).read()
    raise DatasetError(
        f"each video has the arrays {some(sorted(names), 20)}: say which of them is which level, for example "
        f"--array high={min(names, default='features')}"
    )


def with_shape(rules: ImportRules, videos: Mapping[str, VideoArrays]) -> ImportRules:
    """The rules, with the views and widths that most of some videos have. Raises a `DatasetError` if none has any."""
    names = sorted(videos)
    shapes: Counter[tuple[int, tuple[tuple[Level, int], ...]]] = Counter()
    errors = []
    for video in dict.fromkeys([*names[:: len(names) // SAMPLED + 1], *names]):
        try:
            features, _ = _features(videos[video], rules)
        except DatasetError as error:
            errors.append(error)
            continue
        views = len(next(iter(features.values())))
        shapes[views, tuple((level, each.shape[2]) for level, each in features.items())] += 1
        if shapes.total() == SAMPLED:
            break
    if not shapes:
        raise errors[0]
    [((views, widths), _)] = shapes.most_common(1)
    return replace(rules, views=views, widths=dict(widths))


def read_video(video_id: str, arrays: VideoArrays, rules: ImportRules) -> VideoFeatures:
    """The features of a video, or why there are none. The hash in its outcome is that of the features."""
    try:
        features, times_F = _features(arrays, rules)
    except DatasetError as error:
        return failed(Outcome(video_id=video_id, status="failed"), str(error))
    digest = xxhash.xxh3_128()
    digest.update(times_F.tobytes())
    for each in features.values():
        digest.update(each.data)
    size = sum(each.nbytes for each in features.values())
    file = FileState(size=size, modified_ns=0, hash=digest.hexdigest())
    outcome = Outcome(video_id=video_id, status="done", num_frames=len(times_F), file=file)
    return VideoFeatures(outcome=outcome, features=features, pts_seconds=times_F)


def _features(arrays: VideoArrays, rules: ImportRules) -> tuple[dict[Level, NDArray[np.float16]], NDArray[np.float64]]:
    """Features [V, F, C] of each level, and times [F]. Raises `DatasetError` for what is wrong with an array."""
    features: dict[Level, NDArray[np.float16]] = {}
    frames: int | None = None
    for level, name in rules.arrays.items():
        if (array := arrays.get(name)) is None:
            for each in arrays.values():
                each.check()
            raise DatasetError(f"there is no array {name!r} for level {level}; there are {some(sorted(arrays))}")
        numbers = array.read()
        if numbers.dtype.kind != "f" or not 1 <= numbers.ndim <= 3:
            raise DatasetError(
                f"{array} is {numbers.dtype} {numbers.shape}; expected floating-point numbers [frames, channels], "
                "[views, frames, channels] or [channels]"
            )
        shape = (1,) * (3 - numbers.ndim) + numbers.shape
        width = shape[2] if rules.widths is None else rules.widths[level]
        expected = (rules.views or shape[0], frames or shape[1], width)
        if shape != expected:
            whose = ", the views and channels of most videos" if rules.widths else ""
            raise DatasetError(f"{array} is {numbers.shape}; expected [views, frames, channels] {expected}{whose}")
        features[level], frames = _as_float16(numbers.reshape(shape), array), shape[1]
    assert frames
    return features, _times(arrays, frames, rules.fps)


def _as_float16(numbers_VFC: Array, array: ForeignArray) -> NDArray[np.float16]:
    finite_F = np.isfinite(numbers_VFC).all(axis=(0, 2))
    if not finite_F.all():
        raise DatasetError(f"{array}: the numbers of frame {int(np.argmin(finite_F))} are not finite")
    with np.errstate(over="ignore"):
        half_VFC = np.ascontiguousarray(numbers_VFC, dtype=np.float16)
    most = float(np.abs(numbers_VFC).max())
    if not np.isfinite(half_VFC).all():
        raise DatasetError(f"{array} has numbers up to {most:.3g}; the largest float16 is 65504: scale all of them")
    # In units of the largest number, whose square alone may be 0 in float32.
    lost, norm = (float(np.linalg.norm(each / (most or 1.0))) for each in (numbers_VFC - half_VFC, numbers_VFC))
    if lost > _MOST_LOST * norm:
        raise DatasetError(f"{array} has numbers too small for float16 (the least is 6e-8): scale all of them")
    return half_VFC


def _times(arrays: VideoArrays, frames: int, fps: float | None) -> NDArray[np.float64]:
    """When each feature is, in seconds: as the files say, or by the rate that they or the user give."""
    for name, unit in (("pts_seconds", 1.0), ("timestamps_ms", 1000.0)):
        if (array := arrays.get(name)) is not None:
            times_F = array.read().astype(np.float64).reshape(-1) / unit
            if times_F.shape != (frames,) or not np.isfinite(times_F).all() or (np.diff(times_F) < 0).any():
                raise DatasetError(f"{array} has {len(times_F):,} times; expected {frames:,}, finite and ascending")
            return times_F
    if (array := arrays.get("fps")) is not None:
        rates = array.read().astype(np.float64).reshape(-1)
        if len(rates) != 1 or not 0 < rates[0] < np.inf:
            raise DatasetError(f"{array} has {some([*map(str, rates)])}; expected one rate above 0")
        fps = float(rates[0])
    if fps is None and frames > 1:
        raise DatasetError(
            f"{next(iter(arrays.values()))}: nothing says when these {frames:,} frames are. Give --fps, how many there "
            "are a second; 1 numbers them (only spans and --clips fps= look at times)"
        )
    return np.arange(frames) / (fps or 1.0)
