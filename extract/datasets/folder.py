"""A folder of videos, `<class>/<video>`, with three splits made here: 30 % of each class for testing.

Videos cut from one recording (`…_g07_c01.avi`, `…_g07_c02.avi`) always go into the same half: otherwise a head would be
tested on what it was trained on. The choice depends on names alone, so it is the same on every machine.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from cache.common.errors import DatasetError
from cache.common.text import some
from cache.dataset import SPLITS, Dataset
from extract.datasets.lists import SplitLists
from extract.datasets.paths import find_videos, require_folder

TEST_FRACTION = 0.3
"""Share of a class's videos for testing, as close as whole groups allow."""

_GROUP = re.compile(r"(.*_g\d+)_.*")


def load(name: str, data: Path) -> tuple[Dataset, Path]:
    """The dataset of all videos below `data`, and that folder with links resolved."""
    root = require_folder(data, "expected are <class>/<video> in it; say where it is with DATA= (--data)")
    paths = find_videos(root)
    return arrange(name, paths, str(root)), root


def arrange(name: str, paths: Sequence[str], where: str) -> Dataset:
    """The dataset of `paths`; `where` is their folder, for messages."""
    if not paths:
        raise DatasetError(f"{where} has no video files; put them into <class>/<video>, or give a CSV file as DATA=")
    loose = [path for path in paths if "/" not in path]
    if loose:
        raise DatasetError(
            f"{where}: {len(loose):,} videos are in no class's folder: {some(loose)}; move them into "
            "<class>/<video>, or list videos without a class in a CSV file (video,label,split1) and give that as DATA="
        )
    of_class = defaultdict(list)
    for path in sorted(paths):
        of_class[path.partition("/")[0]].append(path)
    lists = SplitLists()
    for label, class_paths in enumerate(of_class.values()):
        for path in class_paths:
            lists.add(path, label, where)
        for split in SPLITS:
            test = test_half(class_paths, seed=split)
            for path in class_paths:
                lists.put(path, split, "test" if path in test else "train", where)
    return Dataset(name=name, source="folder", classes=tuple(of_class), videos=lists.videos())


def group(path: str) -> str:
    """The recording a video was cut from, by its name: `a/v_x_g07_c01.avi` -> `a/v_x_g07`; else the path itself."""
    match = _GROUP.fullmatch(path)
    return match[1] if match else path


def test_half(paths: Sequence[str], *, seed: int) -> frozenset[str]:
    """Videos of one class for testing: whole groups, in an order drawn by hash, if they bring the share nearer to 30 %.

    Neither half is empty if there are at least two groups; a single group is for training.
    """
    groups = defaultdict(list)
    for path in paths:
        groups[group(path)].append(path)
    if len(groups) < 2:
        return frozenset()
    target = TEST_FRACTION * len(paths)
    test: list[str] = []
    for name in sorted(groups, key=lambda name: hashlib.sha256(f"{seed}\n{name}".encode()).digest()):
        if abs(len(test) + len(groups[name]) - target) < abs(len(test) - target):
            test += groups[name]
    return frozenset(test)
