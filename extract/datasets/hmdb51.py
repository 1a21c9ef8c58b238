"""HMDB-51: `hmdb51_org/<class>/*.avi`, and `testTrainMulti_7030_splits/<class>_test_split<N>.txt`.

A line is a file name and 1 (training), 2 (test) or 0 (neither). Classes are numbered in the order of their names.
"""

import re
from pathlib import Path

from cache.common.errors import DatasetError
from cache.common.text import some
from cache.dataset import Dataset, Half
from extract.datasets.lists import Line, SplitLists, read_lines
from extract.datasets.paths import check_path, require_folder
from extract.datasets.published import PublishedCounts

PUBLISHED = PublishedCounts(title="HMDB-51", videos=6_766, classes=51, halves=dict.fromkeys((1, 2, 3), (3_570, 1_530)))
VIDEOS, LISTS = "hmdb51_org", "testTrainMulti_7030_splits"

ADVICE = (
    f"expected are {VIDEOS}/<class>/*.avi and {LISTS}/<class>_test_split1.txt in the data folder, as the dataset's "
    "archives unpack: fetch them with `make data DATASET=hmdb51`, or say where they are with DATA= (--data)"
)

_LIST_NAME = re.compile(r"(.+)_test_split([123])\.txt")
_HALVES: dict[str, Half] = {"0": "none", "1": "train", "2": "test"}


def read_lists(name: str, folder: Path) -> Dataset:
    """All videos that the lists in `folder` name, whether or not the files exist.

    Every class needs a list for every split that any class has, and for split 1.
    """
    require_folder(folder, ADVICE)
    files = _find_lists(folder)
    classes = tuple(sorted({class_name for class_name, _ in files}))
    lists = SplitLists()
    for (class_name, split), file in sorted(files.items()):
        for line in read_lines(file, ADVICE):
            path, half = _parse_video(line, class_name)
            lists.add(path, classes.index(class_name), line.where)
            lists.put(path, split, half, line.where)
    return lists.dataset(name, "hmdb51", classes)


def _find_lists(folder: Path) -> dict[tuple[str, int], Path]:
    """The list of each (class, split)."""
    matches = ((_LIST_NAME.fullmatch(file.name), file) for file in sorted(folder.iterdir()))
    files = {(check_path(match[1], str(file)), int(match[2])): file for match, file in matches if match}
    if not files:
        raise DatasetError(f"{folder} has no <class>_test_split<N>.txt; {ADVICE}")
    classes = sorted({class_name for class_name, _ in files})
    splits = sorted({1} | {split for _, split in files})
    absent = [f"{name}_test_split{split}.txt" for name in classes for split in splits if (name, split) not in files]
    if absent:
        raise DatasetError(f"{folder} lacks {len(absent):,} of its lists: {some(absent)}; {ADVICE}")
    return files


def _parse_video(line: Line, class_name: str) -> tuple[str, Half]:
    """`name.avi 1` -> path and half."""
    name, _, mark = line.text.rpartition(" ")
    if not name or mark not in _HALVES:
        raise DatasetError(f"{line.where}: {line.text!r} is not a file name and 1 (training), 2 (test) or 0 (neither)")
    name = check_path(name.strip(), line.where)
    if "/" in name:
        raise DatasetError(f"{line.where}: {name!r} names a folder; expected a file name of class {class_name!r}")
    return f"{class_name}/{name}", _HALVES[mark]
