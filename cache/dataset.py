"""A dataset as the pipeline sees it: class names, videos, samples; read and written as dataset.json.

A video is a file, which is decoded once. A sample is what has a label and is in the halves of splits: a whole video, or
a span of one.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from cache.common.errors import DamageError, DatasetError, UnsafePathError
from cache.common.files import (
    from_json,
    raise_if_unreadable,
    read_plain,
    sealed_json,
    unsealed_json,
    write_bytes_durably,
)
from cache.common.text import some

Half = Literal["train", "test", "none"]
"""Which half of a split a sample is in; `none` leaves it out of that split."""

SPLITS = (1, 2, 3)

MOST_SECONDS = 10_000_000.0
"""Where a span may end at most; 115 days."""

_UNSAFE_CHARACTERS = re.compile(r"[\x00-\x1f\x7f\u2028\u2029]")
_NO_PARTS = frozenset(("", ".", ".."))
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_HOST = r"https://[A-Za-z0-9][A-Za-z0-9.-]*(?::\d{1,5})?"
_BUCKET = r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"
_PART = r"/(?!\.{1,2}(?:/|$))[^/\\?#\x00-\x1f\x7f\u2028\u2029]+"
ADDRESS = re.compile(f"(?:{_HOST}|{_BUCKET})(?:{_PART})+")
"""A remote video. Without a name, a password or a query: those may be secret, and addresses are written down."""

_FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

_UCF_GROUP = re.compile(r"(.*_g\d+)(?:_.*)?")
_HMDB_ENDING = re.compile(r"_[fhlu]_[cn]m_np\d+_(ba|fr|le|ri)_(bad|med|goo)_\d+$")


def check_relative_path(path: str) -> str:
    """Returns `path`. Raises `UnsafePathError` unless it is a plain relative POSIX path that stays below its root."""
    if not path:
        raise UnsafePathError("an empty path was given where a video's path was expected")
    if _UNSAFE_CHARACTERS.search(path):
        raise UnsafePathError(f"path {path!r} has control characters; rename the file")
    if "\\" in path:
        raise UnsafePathError(f"path {path!r} has a backslash; separate folders by '/'")
    if _SCHEME.match(path) or "::" in path:
        raise UnsafePathError(
            f"path {path!r} looks like a URL; only files below the dataset's root are read (with --allow-remote a "
            "manifest may name others, https:// and s3://, without a password or a query)"
        )
    if not _NO_PARTS.isdisjoint(path.split("/")):
        raise UnsafePathError(
            f"path {path!r} is not a plain path below the dataset's root (no '/' first, no '.', '..')"
        )
    return path


def check_dataset_name(name: str) -> str:
    """Returns `name`. Raises `DatasetError` unless it can name a folder on any system."""
    return check_folder_name(name, "dataset")


def check_folder_name(name: str, what: str) -> str:
    """Returns `name`, of `what`. Raises `DatasetError` unless it can name a folder on any system."""
    if not _FOLDER_NAME.fullmatch(name):
        raise DatasetError(
            f"{what} name {name!r} cannot name a folder: use up to 100 letters, digits, '.', '_', '-', "
            "the first one a letter or digit"
        )
    return name


def video_id(path: str) -> str:
    """Returns the id of the video at `path`: the path without its suffix. `a/b.c.avi` -> `a/b.c`.

    The id of a remote video begins with its host or bucket: `s3://bucket/a/b.avi` -> `bucket/a/b`.
    """
    return str(PurePosixPath(_SCHEME.sub("", path)).with_suffix(""))


def group_of(video_id: str) -> str:
    """Returns the name of the recording that a video was cut from, as far as its id tells.

    Archery/v_Archery_g03_c02               -> Archery/v_Archery_g03  (UCF-101: the last g and its number)
    wave/TrumanShow_wave_f_nm_np1_fr_med_26 -> wave/TrumanShow_wave   (HMDB-51: without what tells a film's clips apart)
    anything/else                           -> itself
    """
    found = _UCF_GROUP.fullmatch(video_id)
    return found[1] if found else _HMDB_ENDING.sub("", video_id)


@dataclass(frozen=True, kw_only=True)
class Video:
    """One file of a dataset."""

    id: str
    """Its path relative to the dataset's root, without suffix, '/'-separated."""
    path: str
    """The same with its suffix; or its address, https:// or s3://, if the user allowed remote videos."""

    def __post_init__(self) -> None:
        check_relative_path(self.id)
        if not ("://" in self.path and ADDRESS.fullmatch(self.path)):
            check_relative_path(self.path)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What has a label: a video, or a span of one."""

    video: str
    """Id of the video."""
    span: tuple[float, float] | None = None
    """Seconds after the video's first frame, `[start, stop)`; None for the whole video."""
    label: int | None
    """Index of its class; None if it is not known."""
    group: str | None = None
    """Name of the group that a manifest puts it in; None if it does not. See `group_name`."""
    splits: Mapping[int, Half] = field(default_factory=dict)
    """Which half of each split it is in."""
    line: int | None = None
    """Line of the manifest that lists a span, for messages."""

    def __post_init__(self) -> None:
        if self.span is not None and not 0 <= self.span[0] < self.span[1] <= MOST_SECONDS:
            raise DatasetError(
                f"span {self.span} of video {self.video!r} does not begin at 0 or later, before its end, in seconds"
            )
        for split, half in self.splits.items():
            if split not in SPLITS or half not in get_args(Half):
                raise DatasetError(
                    f"sample {self.id!r}: split {split!r}: {half!r} is not one of 1, 2, 3: train, test, none"
                )

    @property
    def id(self) -> str:
        """The video's id; for a span with a media fragment (W3C) in seconds: `a/b#t=12.5,20`."""
        return self.video if self.span is None else f"{self.video}#t={','.join(map(_seconds, self.span))}"

    @property
    def group_name(self) -> str:
        """What must not be on both sides of a split: the group given, else the recording that the video's id tells."""
        return self.group or group_of(self.video)


def _seconds(value: float) -> str:
    """Seconds to the microsecond, without an exponent: 12.5, 20."""
    return f"{value:.6f}".rstrip("0").rstrip(".")


@dataclass(frozen=True, kw_only=True)
class Subset:
    """How a dataset differs from the complete published one; every report mentions it."""

    published_videos: int | None
    """Videos of the complete dataset; None if that is not known."""
    published_classes: int | None
    listed_videos: int
    """Videos that the split files at hand list."""
    missing: tuple[str, ...]
    """Ids that are listed but whose files are missing."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Class names in label order; videos and samples in id order."""

    name: str
    source: str
    """Which rules found it: ucf101, hmdb51, manifest, folder, demo."""
    classes: tuple[str, ...]
    videos: tuple[Video, ...]
    samples: tuple[Sample, ...]
    """Where nothing has spans, one for each video, and with its id."""
    subset: Subset | None = None
    """None for a complete dataset."""
    extra: tuple[str, ...] = ()
    """Video files below the root that no split file lists."""

    def __post_init__(self) -> None:
        check_dataset_name(self.name)
        if len(set(self.classes)) != len(self.classes):
            twice = sorted(name for name, count in Counter(self.classes).items() if count > 1)
            raise DatasetError(f"dataset {self.name!r}: class names are used twice: {', '.join(map(repr, twice))}")
        paths: dict[str, str] = {}
        for video in self.videos:
            if video.id in paths:
                raise DatasetError(
                    f"dataset {self.name!r}: {paths[video.id]!r} and {video.path!r} have one id {video.id!r}; "
                    "rename one of the files"
                )
            paths[video.id] = video.path
        seen: set[str] = set()
        for sample in self.samples:
            if sample.id in seen:
                raise DatasetError(f"dataset {self.name!r} has sample {sample.id!r} twice")
            seen.add(sample.id)
            if sample.video not in paths:
                raise DatasetError(f"sample {sample.id!r} is of a video that the dataset does not have")
            if sample.label is not None and not 0 <= sample.label < len(self.classes):
                raise DatasetError(f"sample {sample.id!r}: label {sample.label} is outside 0..{len(self.classes) - 1}")

    @classmethod
    def of_whole_videos(
        cls,
        name: str,
        source: str,
        classes: Sequence[str],
        rows: Iterable[tuple[str, int | None, Mapping[int, Half]]],
    ) -> "Dataset":
        """The dataset whose samples are its videos; `rows`: path, label and halves of each."""
        files = [(Video(id=video_id(path), path=path), label, splits) for path, label, splits in rows]
        return cls(
            name=name,
            source=source,
            classes=tuple(classes),
            videos=tuple(video for video, _, _ in files),
            samples=tuple(Sample(video=video.id, label=label, splits=splits) for video, label, splits in files),
        )

    @property
    def noun(self) -> str:
        """What its samples are called to people: videos, where none of them is a span."""
        return "samples" if any(sample.span for sample in self.samples) else "videos"

    def half(self, split: int, half: Half) -> tuple[Sample, ...]:
        """Returns the samples of one half of a split, in id order. Raises `DatasetError` if there is no such one."""
        if half not in get_args(Half):
            raise DatasetError(f"a split has no half {half!r}; it has {', '.join(map(repr, get_args(Half)))}")
        if split not in self.split_numbers:
            raise DatasetError(
                f"dataset {self.name!r} has no split {split}; it has {self.split_numbers or 'none'}: choose one with "
                "SPLIT="
            )
        return tuple(sample for sample in self.samples if sample.splits.get(split) == half)

    @property
    def split_numbers(self) -> list[int]:
        """The splits that some sample is in, also as `none`."""
        return sorted({number for sample in self.samples for number in sample.splits})

    def one_sided(self, split: int) -> dict[Half, list[str]]:
        """For each half of a split the classes that only this half has samples of."""
        train, test = ({each.label for each in self.half(split, half)} for half in ("train", "test"))
        only: dict[Half, set[int | None]] = {"train": train - test, "test": test - train}
        return {half: [name for label, name in enumerate(self.classes) if label in each] for half, each in only.items()}

    def one_sided_notes(self, split: int) -> list[str]:
        """The same as a phrase for each half that has such classes."""
        names = self.one_sided(split)
        texts: dict[Half, str] = {
            "test": "classes in the test half only, so that no head learns them",
            "train": "classes in the training half only, so that they are not tested",
        }
        return [f"{text}: {some(names[half])}" for half, text in texts.items() if names[half]]

    def class_of(self, sample: Sample) -> str | None:
        """Name of a sample's class; None if it is not known."""
        return None if sample.label is None else self.classes[sample.label]

    def class_counts(self) -> Counter[str]:
        """Number of samples of each class that has some."""
        return Counter(self.classes[sample.label] for sample in self.samples if sample.label is not None)


def dataset_bytes(dataset: Dataset) -> bytes:
    """Returns `dataset` as sealed JSON."""
    return sealed_json({"format": 2, **asdict(dataset)})


def dataset_of(content: bytes, where: str) -> Dataset:
    """The inverse of `dataset_bytes`. Raises `DatasetError` naming `where` if it is malformed or has unsafe paths.

    Also reads format 1, in which videos had the labels and halves.
    """
    try:
        value = unsealed_json(content, where)
        if (version := value.pop("format")) not in (1, 2):
            raise DatasetError(f"{where} has another format than 1 or 2; a newer version of this program wrote it")
        return from_json(_with_samples(value) if version == 1 else value, Dataset)
    except (DamageError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DatasetError(f"{where} is not a dataset written by this program: {error}") from error


def _with_samples(value: dict[str, Any]) -> dict[str, Any]:
    """The content of format 1 as that of format 2."""
    whole = {"span": None, "group": None, "line": None}
    samples = [
        {"video": each["id"], "label": each.pop("label"), "splits": each.pop("splits"), **whole}
        for each in value["videos"]
    ]
    return {**value, "samples": samples}


def write_dataset(path: Path, dataset: Dataset) -> None:
    """Replace `path` by `dataset`; readers see the old file or the new one."""
    write_bytes_durably(path, dataset_bytes(dataset))


def update_format(path: Path) -> None:
    """Write a dataset.json of format 1 as one of the format of now."""
    if read_plain(path).startswith(b'{\n  "format": 1,'):
        write_dataset(path, read_dataset(path))


def read_dataset(path: Path) -> Dataset:
    """Read a dataset.json. Raises `DatasetError` if the file is missing, malformed or has unsafe paths."""
    try:
        return dataset_of(read_plain(path), str(path))
    except FileNotFoundError:
        raise DatasetError(f"{path} is missing; extract the dataset again") from None
    except OSError as error:
        raise_if_unreadable(error, path)
        raise DatasetError(f"{path} is not a dataset written by this program: {error}") from error
