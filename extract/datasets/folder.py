"""A folder of videos, `<class>/<video>`, with three splits made here: 30 % of each class for testing.

Videos cut from one recording (`…_g07_c01.avi`, `…_g07_c02.avi`; HMDB-51's clips of a film) always go into the same
half: otherwise a head is tested on what it was trained on. The choice depends on names alone, so it is the same on
every machine.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from cache.common.errors import DatasetError
from cache.common.text import some
from cache.dataset import SPLITS, Dataset, group_of, video_id
from extract.datasets.lists import SplitLists
from extract.datasets.paths import find_videos, require_folder

TEST_FRACTION = 0.3
"""Share of a class's videos for testing, as close as whole groups allow."""


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


def test_half(paths: Sequence[str], *, seed: int) -> frozenset[str]:
    """Returns the videos of one class that are for testing.

    Whole groups are taken in an order drawn by hash, while they bring the part nearer to 30 %. Neither half is empty
    if there are two groups or more; a single group is for training.
    """
    groups = defaultdict(list)
    for path in paths:
        groups[group_of(video_id(path))].append(path)
    if len(groups) < 2:
        return frozenset()

    def drawn(group: str) -> bytes:
        # A video that is a group of its own is drawn by its path with the suffix: a split once made stays as it is.
        name = groups[group][0] if [group] == [video_id(path) for path in groups[group]] else group
        return hashlib.sha256(f"{seed}\n{name}".encode()).digest()

    target = TEST_FRACTION * len(paths)
    test: list[str] = []
    for group in sorted(groups, key=drawn):
        if abs(len(test) + len(groups[group]) - target) < abs(len(test) - target):
            test += groups[group]
    return frozenset(test)
