"""A folder of videos, `<class>/<video>`, with three splits made here: 30 % of each class for testing.

Videos cut from one recording (`…_g07_c01.avi`, `…_g07_c02.avi`; HMDB-51's clips of a film) always go into the same
half: otherwise a head is tested on what it was trained on. The choice depends on names alone, so it is the same on
every machine.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from cache.common.errors import DatasetError
from cache.common.text import some, visible
from cache.dataset import SPLITS, Dataset, group_of, video_id
from extract.datasets.lists import SplitLists
from extract.datasets.paths import require_folder, scan_folder

_HALF = re.compile(
    r"(train(ing)?|val(id(ation)?)?|test(ing)?|dev|eval(uation)?|holdout)([ _-]?(set|data|split|videos|\d))?", re.I
)
"""Names of folders that hold a half of a split, where there are several; "train" alone may be a class."""

TEST_FRACTION = 0.3
"""Share of a class's videos for testing, as close as whole groups allow."""


def load(name: str, data: Path, say: Callable[[str], None]) -> tuple[Dataset, Path]:
    """The dataset of all videos below `data`, and that folder with links resolved; says what was passed over.

    DatasetError if the classes are halves of a split.
    """
    root = require_folder(data, "expected are <class>/<video> in it; say where it is with DATA= (--data)")
    scan = scan_folder(root)
    passed_over = ", ".join(f"{count:,} {visible(suffix)}" for suffix, count in sorted(scan.passed_over.items()))
    empty = sorted(set(scan.folders) - {path.partition("/")[0] for path in scan.videos})
    for text, what in {
        "files passed over, by suffix": passed_over,
        "folders not looked into": some(scan.unread),
        "folders without a video, which give no class": some(empty, 20),
    }.items():
        if what:
            say(f"{root}: {text}: {what}")
    dataset = arrange(name, scan.videos, str(root))
    halves = [folder for folder in dataset.classes if _HALF.fullmatch(folder)]
    if len(halves) > 1 or halves == list(dataset.classes):
        lines = [_manifest_line(next(path for path in scan.videos if path.startswith(f"{half}/"))) for half in halves]
        raise DatasetError(
            f"{root}: {some(halves)} are halves of a split and not classes. List the videos in a CSV file in that "
            "folder, and give it as DATA= (--data), for example\n  video,label,split1\n  " + "\n  ".join(lines)
        )
    return dataset, root


def _manifest_line(path: str) -> str:
    """The line of a video at HALF/CLASS/VIDEO in a manifest."""
    half, *inside = path.split("/")
    split = "train" if half.lower().startswith("train") else "test" if half.lower().startswith("test") else "none"
    return f"{visible(path)},{visible(inside[0]) if len(inside) > 1 else 'CLASS'},{split}"


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
    return lists.dataset(name, "folder", tuple(of_class))


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
