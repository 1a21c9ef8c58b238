"""A folder of videos, `<class>/<video>`, with three splits made here: some 30 % of each class for testing.

Videos cut from one recording (`…_g07_c01.avi`, `…_g07_c02.avi`; HMDB-51's clips of a film) always go into the same
half: otherwise a head is tested on what it was trained on. Each recording's half is drawn from its own name, so it is
the same on every machine, and stays when videos are added.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from cache.common.errors import DatasetError
from cache.common.text import some, visible
from cache.dataset import SPLITS, Dataset, Half, group_of, video_id
from extract.datasets.lists import SplitLists
from extract.datasets.paths import require_folder, scan_folder

_HALF = re.compile(
    r"(train(ing)?|trn?|val(id(ation)?)?|test(ing)?|te|tst|dev|eval(uation)?|holdout|unlabel+ed)"
    r"([ _-]?(set|data|split|videos|\d+))?|(fold|split)[ _-]?\d+",
    re.I,
)
"""Names of folders that hold a half of a split, where there are several; "train" alone may be a class."""

TEST_FRACTION = 0.3
"""Probability of a group to be for testing."""


def load(name: str, data: Path, say: Callable[[str], None], recorded: Dataset | None = None) -> tuple[Dataset, Path]:
    """The dataset of all videos below `data`, and that folder with links resolved; says what was passed over.

    Videos keep the halves that they have in the `recorded` dataset. DatasetError if the classes are halves of a split.
    """
    root = require_folder(data, "expected are <class>/<video> in it; say where it is with DATA= (--data)")
    scan = scan_folder(root)
    empty = sorted(set(scan.folders) - {path.partition("/")[0] for path in scan.videos})
    for line in [
        *scan.passed_over_text(),
        *([f"folders without a video, which give no class: {some(empty, 20)}"] if empty else []),
    ]:
        say(f"{root}: {line}")
    dataset = arrange(name, scan.videos, str(root), halves_of(recorded))
    anew = arrange(name, scan.videos, str(root), {})
    if kept := [one.id for one, other in zip(dataset.samples, anew.samples, strict=True) if one.splits != other.splits]:
        say(
            f"{root}: {len(kept):,} videos keep the halves that this cache has for them, where a new cache would draw "
            f"others: {some(kept)}"
        )
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


Known = Mapping[int, Mapping[str, Half]]
"""For each split the halves that groups have already."""


def halves_of(dataset: Dataset | None) -> Known:
    """The halves that a cache's dataset has, if they were drawn here; nothing if there is none."""
    drawn = dataset.samples if dataset is not None and dataset.source == "folder" else ()
    return {split: {each.group_name: each.splits[split] for each in drawn if split in each.splits} for split in SPLITS}


def arrange(name: str, paths: Sequence[str], where: str, known: Known) -> Dataset:
    """The dataset of `paths`; `where` is their folder, for messages. Groups keep the halves that are `known`."""
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
        groups = {path: group_of(video_id(path)) for path in class_paths}
        halves = {split: draw_halves(groups.values(), split, known.get(split, {})) for split in SPLITS}
        for path, group in groups.items():
            lists.add(path, label, where)
            for split in SPLITS:
                lists.put(path, split, halves[split][group], where)
    return lists.dataset(name, "folder", tuple(of_class))


def draw_halves(groups: Iterable[str], seed: int, known: Mapping[str, Half]) -> dict[str, Half]:
    """The half of each group of one class: what is `known`, else drawn from the group's own name.

    So a group that comes moves no other one. If that leaves a half empty, the group whose draw is nearest to it goes
    there, a new one if there is one; a single group is for training.
    """
    draws = {group: draw(group, seed) for group in groups}
    halves: dict[str, Half] = {
        group: known.get(group) or ("test" if draw < TEST_FRACTION else "train") for group, draw in draws.items()
    }
    if len(draws) < 2:
        return dict.fromkeys(draws, "train")
    for half in ("train", "test"):
        if half not in halves.values():
            order = sorted(draws, key=lambda group: (group in known, abs(draws[group] - TEST_FRACTION)))
            halves[order[0]] = half
    return halves


def draw(group: str, seed: int) -> float:
    """A number from 0 to 1 that depends on the group's name and the seed alone."""
    digest = hashlib.sha256(f"{seed}\n{group}".encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8]) / 2**64
