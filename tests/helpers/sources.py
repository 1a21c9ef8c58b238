"""Data folders for the tests of dataset sources: lists as given, videos as empty files (sources never open them)."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from hypothesis import strategies as st

from cache.common.errors import DatasetError
from cache.dataset import Dataset, Half

HOSTILE_PATHS = {
    "climbs out": "../outside.avi",
    "climbs out in the middle": "a/../../outside.avi",
    "absolute": "/etc/passwd.avi",
    "NUL": "a\0b.avi",
    "escape character": "a\x1b[2Jb.avi",
    "URL": "http://example.org/x.avi",
    "URL chain": "simplecache::x.avi",
    "backslash": "..\\outside.avi",
    "here": "./x.avi",
    "empty part": "a//x.avi",
}
"""Paths that a split list or manifest must never name."""

names = st.text("abcXYZ019 _-.!()+&#;[]~éß漢", min_size=1, max_size=12).filter(
    lambda name: name.strip() == name and not name.startswith(".")
)
"""Names of classes and videos, with the characters that real ones have and some more."""


def write_files(root: Path, files: Mapping[str, str | bytes]) -> Path:
    """Write each file below `root`, folders made as needed; returns `root`."""
    for path, content in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def touch(root: Path, paths: Iterable[str]) -> Path:
    """Empty files below `root`; returns `root`."""
    return write_files(root, dict.fromkeys(paths, b""))


def listed(dataset: Dataset) -> list[tuple[str, int | None, dict[int, Half]]]:
    """Path, label and halves of each sample, in order."""
    path_of = {video.id: video.path for video in dataset.videos}
    return [(path_of[sample.video], sample.label, dict(sample.splits)) for sample in dataset.samples]


def refusal(read: Callable[[], object]) -> str | None:
    """The text of the DatasetError that `read` raises; None if it raises none. Other errors are not caught."""
    try:
        read()
    except DatasetError as error:
        return str(error)
    return None
