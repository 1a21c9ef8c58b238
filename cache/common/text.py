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


def csv_cell(name: str) -> str:
    """Returns `name` for a CSV cell: an apostrophe keeps spreadsheets from reading it as a formula."""
    return f"'{name}" if name.startswith(_FORMULA_STARTS) else name


def shortened(name: str, length: int) -> str:
    """Returns at most `length` characters of `name`, without its middle: both ends of a file's name matter."""
    if len(name) <= length:
        return name
    head = (length - 1) // 2
    return f"{name[:head]}…{name[len(name) - (length - 1 - head) :]}"


def wrapped(text: str, indent: str, width: int = 80) -> str:
    """`text` as lines of at most `width` columns, all but the first after `indent`; words are never cut."""
    return textwrap.fill(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def some(names: Sequence[str], shown: int = 3) -> str:
    """The first `shown` names and how many more there are: "a, b, c and 4 more". Control characters become visible."""
    listed = ", ".join(map(visible, names[:shown]))
    return f"{listed} and {len(names) - shown:,} more" if len(names) > shown else listed
