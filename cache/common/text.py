"""Names from outside (classes, files) as harmless text: for terminals, Markdown and spreadsheets."""

import re
import textwrap
import unicodedata
from collections.abc import Collection, Iterable, Sequence

_MARKDOWN = re.compile(r"([\\`*_\[\]<>#|~$&@]|:(?=//))")
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def visible(name: str) -> str:
    """Returns `name` with control, direction and other invisible characters as escapes, so that none takes effect."""
    return "".join(
        character if character == " " or unicodedata.category(character)[0] not in "CZ" else ascii(character)[1:-1]
        for character in name
    )


def markdown(name: str) -> str:
    """Returns `name` as literal text of a Markdown table cell."""
    return _MARKDOWN.sub(r"\\\1", visible(name))


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]], numeric: Collection[int] = ()) -> str:
    """A Markdown table, its cells as literal text; the columns `numeric`, counted from 0, are set flush right."""
    rules = ["---:" if column in numeric else "---" for column in range(len(heads))]
    escaped = [[markdown(cell) for cell in row] for row in (heads, *rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (escaped[0], rules, *escaped[1:]))


def text_table(heads: Sequence[str], rows: Iterable[Sequence[str]], numeric: Collection[int] = ()) -> str:
    """A table for a terminal of 80 columns, its cells made visible; the columns `numeric` are set flush right.

    A heading stands on several lines rather than make its column wide, and so does what is in the first column.
    """
    shown = [list(map(visible, row)) for row in rows]
    words = [re.findall(r"\d+ %|\S+", head) for head in heads]
    widths = [
        max([*map(len, head), *(len(row[column]) for row in shown)]) if head or shown else 0
        for column, head in enumerate(words)
    ]
    gap = 2 if sum(widths) + 2 * (len(widths) - 1) <= 80 else 1
    widths[0] = min(widths[0], max(12, 80 - sum(widths[1:]) - gap * (len(widths) - 1)))
    height = max(map(len, words))
    lines = [list(line) for line in zip(*([""] * (height - len(head)) + head for head in words), strict=True)]
    for row in shown:
        first, *more = textwrap.wrap(row[0], widths[0], subsequent_indent="  ") or [""]
        lines += [[first, *row[1:]], *([part, *[""] * (len(row) - 1)] for part in more)]
    return "\n".join(
        (" " * gap)
        .join(
            cell.rjust(width) if column in numeric else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        .rstrip()
        for line in lines
    )


def csv_cell(name: str) -> str:
    """Returns `name` for a CSV cell: an apostrophe keeps spreadsheets from reading it as a formula."""
    return f"'{name}" if name.startswith(_FORMULA_STARTS) else name


def shortened(name: str, length: int) -> str:
    """Returns at most `length` characters of `name`, without its middle: both ends of a file's name matter."""
    if len(name) <= length:
        return name
    head = (length - 1) // 2
    return f"{name[:head]}…{name[len(name) - (length - 1 - head) :]}"


def wrapped(text: str, indent: str, width: int) -> str:
    """`text` as lines of at most `width` columns, all but the first after `indent`; words are never cut."""
    return textwrap.fill(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def some(names: Sequence[str], shown: int = 3) -> str:
    """The first `shown` names and how many more there are: "a, b, c and 4 more". Control characters become visible."""
    listed = ", ".join(map(visible, names[:shown]))
    return f"{listed} and {len(names) - shown:,} more" if len(names) > shown else listed
