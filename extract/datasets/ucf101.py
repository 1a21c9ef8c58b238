"""UCF-101: `UCF-101/<Class>/*.avi`, and `ucfTrainTestlist/{classInd,trainlist0N,testlist0N}.txt`."""

from pathlib import Path

from cache.common.errors import DatasetError
from cache.common.text import some
from cache.dataset import SPLITS, Dataset, Half
from extract.datasets.lists import Line, SplitLists, read_lines
from extract.datasets.paths import check_path, require_folder
from extract.datasets.published import PublishedCounts

PUBLISHED = PublishedCounts(
    title="UCF-101", videos=13_320, classes=101, halves={1: (9_537, 3_783), 2: (9_586, 3_734), 3: (9_624, 3_696)}
)
VIDEOS, LISTS = "UCF-101", "ucfTrainTestlist"

ADVICE = (
    f"expected are {VIDEOS}/<Class>/*.avi and {LISTS}/*.txt in the data folder, as the dataset's archives unpack: "
    "fetch them with `make data DATASET=ucf101`, or say where they are with DATA= (--data)"
)


def read_lists(name: str, folder: Path) -> Dataset:
    """All videos that the lists in `folder` name, whether or not the files exist.

    Split 1 is required; splits 2 and 3 are optional. Raises DatasetError for every contradiction.
    """
    require_folder(folder, ADVICE)
    classes = _read_classes(folder / "classInd.txt")
    labels = {name: label for label, name in enumerate(classes)}
    lists = SplitLists()
    for split in SPLITS:
        files: dict[Half, Path] = {half: folder / f"{half}list0{split}.txt" for half in ("train", "test")}
        if split > 1 and not any(file.exists() for file in files.values()):
            continue
        for half, file in files.items():
            for line in read_lines(file, ADVICE):
                path, label = _parse_video(line, labels, number_needed=half == "train")
                lists.add(path, label, line.where)
                lists.put(path, split, half, line.where)
    return lists.dataset(name, "ucf101", classes)


def _read_classes(file: Path) -> tuple[str, ...]:
    """Class names in the order of their numbers, which run from 1 without a gap."""
    names: dict[int, str] = {}
    for line in read_lines(file, ADVICE):
        number, _, name = line.text.partition(" ")
        if not (_is_number(number) and name.strip()):
            raise DatasetError(f"{line.where}: {line.text!r} is not a class's number and name, such as '1 Archery'")
        name = check_path(name.strip(), line.where)
        if int(number) in names or name in names.values():
            raise DatasetError(f"{line.where}: class {number} {name!r} repeats a number or name of an earlier line")
        names[int(number)] = name
    if not names or sorted(names) != list(range(1, len(names) + 1)):
        have = some([str(number) for number in sorted(names)]) or "none"
        raise DatasetError(f"{file}: class numbers are {have}; expected 1, 2, 3, … without a gap")
    return tuple(names[number] for number in sorted(names))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def _parse_video(line: Line, labels: dict[str, int], *, number_needed: bool) -> tuple[str, int]:
    """`Class/name.avi 7` -> path and label from 0. The number is checked against the class's own."""
    path, _, number = line.text.rpartition(" ")
    if not _is_number(number):
        path, number = line.text, ""
    class_name, slash, _ = check_path(path.strip(), line.where).partition("/")
    if not slash:
        raise DatasetError(f"{line.where}: {path!r} is not <Class>/<video>")
    if class_name not in labels:
        raise DatasetError(f"{line.where}: unknown class {class_name!r}; classInd.txt has {some(list(labels))}")
    expected = labels[class_name] + 1
    if number_needed and not number:
        raise DatasetError(f"{line.where}: {line.text!r} lacks the class's number ({expected}) after the path")
    if number and int(number) != expected:
        raise DatasetError(f"{line.where}: class {class_name!r} has number {number} here, {expected} in classInd.txt")
    return path.strip(), labels[class_name]
