"""A CSV file that lists samples: columns `video,label,split1[,split2,split3][,start,end][,group]`, in any order, the
first line naming them.

Spreadsheets' habits are borne: a byte order mark, CRLF, `;` or tabs between values, rows of empty values, empty values
at the end of a row, `./` before a path, names of columns in capitals.

`video` is a path relative to the CSV's folder, or an address, https:// or s3://, if the user allows that. `label` is a
class name; empty if the class is not known, and then the video can be in no half. A split's column says train, test or
none; empty means none. `start` and `end`, seconds, make a row a span of its video; a video may have many. `group` names
what must not be on both sides of a split.
"""

import csv
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from cache.common.errors import DatasetError
from cache.common.text import some
from cache.dataset import ADDRESS, MOST_SECONDS, SPLITS, Dataset, Half
from extract.datasets.lists import SplitLists, read_text
from extract.datasets.paths import check_link, is_file
from extract.datasets.published import match_files

ADVICE = "give a CSV file with the columns video,label,split1 as DATA= (--data)"

_HALVES: dict[str, Half] = {"train": "train", "test": "test", "none": "none", "": "none"}

Row = tuple[str, int, dict[str, str]]
"""File and line number, the latter alone too, and the value of each column."""

_SECONDS = re.compile(r"\d{1,8}([.,]\d*)?")
"""Seconds as a spreadsheet writes them, also with a decimal comma."""


def load(
    name: str, file: Path, *, subset: bool, remote: bool = False, say: Callable[[str], None] = lambda _: None
) -> tuple[Dataset, Path]:
    """The dataset that the CSV lists, its files checked, and the CSV's folder, which is the root of its paths.

    With `remote` videos may be remote; whether those exist shows when they are downloaded. Says which recordings are on
    both sides of a split, as far as the names of the videos tell.
    """
    listed = read_manifest(name, file, remote=remote, say=say)
    root = file.parent.resolve()
    found = [video.path for video in listed.videos if ADDRESS.fullmatch(video.path) or is_file(root / video.path)]
    for split in listed.split_numbers:
        train, test = ({sample.group_name for sample in listed.half(split, half)} for half in ("train", "test"))
        if both := sorted(train & test):
            say(
                f"{file}: {len(both):,} recordings are on both sides of split {split}, so its accuracy will look "
                f"better than it is: {some(both)} (a column `group` says what belongs together)"
            )
    return match_files(listed, found, root, None, subset=subset), root


def read_manifest(
    name: str, file: Path, *, remote: bool = False, files: bool = True, say: Callable[[str], None] = lambda _: None
) -> Dataset:
    """All videos that the CSV lists, whether or not the files exist. Classes are numbered in order of their names.

    Unless `files`, the column `video` may have ids: paths without a suffix.
    """
    splits, rows = _read_rows(file, say)
    classes = tuple(sorted({row["label"] for _, _, row in rows if row["label"]}))
    labels = {class_name: label for label, class_name in enumerate(classes)}
    lists = SplitLists(remote=remote, files=files)
    root = file.parent.resolve()
    sides: dict[tuple[int, str], tuple[Half, str]] = {}
    for where, line, row in rows:
        span, group = _read_span(row, where), row.get("group") or None
        lists.add(
            row["video"], labels.get(row["label"]), where, span=span, group=group, line=None if span is None else line
        )
        if not ADDRESS.fullmatch(row["video"]):
            check_link(root, row["video"], where)
        for split in splits:
            if (half := _HALVES.get(row[f"split{split}"])) is None:
                raise DatasetError(f"{where}: {row[f'split{split}']!r} is not train, test or none")
            if half != "none" and not row["label"]:
                raise DatasetError(f"{where}: a video without a label cannot be in the {half} half; write none")
            lists.put(row["video"], split, half, where, span=span)
            if group and half != "none":
                other, there = sides.setdefault((split, group), (half, where))
                if other != half:
                    raise DatasetError(
                        f"{where}: group {group!r} is in the {half} half of split {split} here, in the {other} half by "
                        f"{there}; a group is on one side of a split"
                    )
    return lists.dataset(name, "manifest", classes)


def _read_span(row: dict[str, str], where: str) -> tuple[float, float] | None:
    """The span of a row; None for a whole video."""
    start, end = row.get("start", ""), row.get("end", "")
    if not start and not end:
        return None
    if not (_SECONDS.fullmatch(start) and _SECONDS.fullmatch(end)):
        raise DatasetError(
            f"{where}: start {start!r} and end {end!r} are not two numbers of seconds, such as 12.5 and 20, or two "
            "empty values for the whole video"
        )
    first, stop = (round(float(text.replace(",", ".")), 6) for text in (start, end))
    if not first < stop <= MOST_SECONDS:
        raise DatasetError(
            f"{where}: the span from {start} s to {end} s does not end after its start, by {MOST_SECONDS:,.0f} s"
        )
    return first, stop


def _read_rows(file: Path, say: Callable[[str], None]) -> tuple[list[int], list[Row]]:
    """The splits that have a column, and the rows below the first."""
    lines = _numbered(file, say)
    _, columns = next(lines, (1, []))
    columns = _without_end([column.lower() for column in columns], 0)
    known = ["video", "label", *(f"split{split}" for split in SPLITS), "start", "end", "group"]
    needed = known[:3] + (["start", "end"] if {"start", "end"} & set(columns) else [])
    problems = {
        "without": [column for column in needed if column not in columns],
        "with an unknown": [column or "(empty)" for column in columns if column not in known],
        "twice with": [column for column in known if columns.count(column) > 1],
    }
    if wrong := [f"{what} {some(names)}" for what, names in problems.items() if names]:
        raise DatasetError(
            f"{file}, line 1: columns are {some(columns, 20)!r}, {' and '.join(wrong)}; {ADVICE}, and if wanted "
            "split2,split3, start,end, group"
        )
    rows = []
    for number, line in lines:
        where = f"{file}, line {number}"
        if len(values := _without_end(line, len(columns))) != len(columns):
            raise DatasetError(f"{where}: {len(values)} values for the {len(columns)} columns {','.join(columns)}")
        row = dict(zip(columns, values, strict=True))
        rows.append((where, number, row | {"video": re.sub(r"^(\./+)+", "", row["video"])}))
    if not rows:
        raise DatasetError(f"{file} lists no videos; add a line for each: video,label,split1")
    return [split for split in SPLITS if f"split{split}" in columns], rows


def _without_end(values: list[str], kept: int) -> list[str]:
    """The values without the empty ones at the end, which spreadsheets add, but at least `kept` of them."""
    end = len(values)
    while end > kept and not values[end - 1]:
        end -= 1
    return values[:end]


def _numbered(file: Path, say: Callable[[str], None]) -> Iterator[tuple[int, list[str]]]:
    """Line number, and the values without the spaces around them, of each row that is not empty."""
    text = read_text(file, ADVICE, say)
    first = next((line for line in text.splitlines() if line.strip()), "")
    declared = re.match(r'"?sep=([,;\t|])', first)  # as Excel writes it
    separator = declared[1] if declared else max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        for row in reader:
            values = [value.strip() for value in row]
            if any(values) and not (declared and values[0] in ("sep=", f"sep={separator}")):
                yield reader.line_num, values
    except csv.Error as error:
        raise DatasetError(f"{file}, line {reader.line_num}: not CSV: {error}") from error
