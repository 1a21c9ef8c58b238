"""Tables as data, and the three ways they are written: for a terminal, Markdown and CSV."""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from cache.common.text import csv_cell, markdown, markdown_table, visible
from fuse import metrics, paper
from fuse.results import MODELS, TITLES, Results

Cell = str | float | int | None

NONE: Final = "–"
"""What stands where there is no figure."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: its heading for people, its name for programs, how its numbers are written."""

    title: str
    name: str
    decimals: int = 0
    signed: bool = False

    def text(self, cell: Cell) -> str:
        """The cell as people read it."""
        if cell is None or (isinstance(cell, float) and math.isnan(cell)):
            return NONE
        if isinstance(cell, str):
            return cell
        number = f"{cell:{'+' if self.signed else ''}.{self.decimals}f}"
        return number.replace("-", "−") if self.signed else number


@dataclass(frozen=True, kw_only=True)
class Table:
    """A heading, what has to be known before reading it, and rows of cells."""

    title: str
    notes: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def numeric(self, index: int) -> bool:
        """Whether a column holds numbers, and is set flush right."""
        return not any(isinstance(row[index], str) for row in self.rows)

    def shown_rows(self) -> Iterator[list[str]]:
        """The rows as people read them, before any escaping."""
        for row in self.rows:
            yield [column.text(cell) for column, cell in zip(self.columns, row, strict=True)]


def to_text(table: Table) -> str:
    """For a terminal: notes, then aligned columns."""
    rows = [
        [column.title for column in table.columns],
        *([visible(cell) for cell in row] for row in table.shown_rows()),
    ]
    widths = [max(len(row[index]) for row in rows) for index in range(len(table.columns))]
    aligned = [
        "  ".join(
            cell.rjust(width) if table.numeric(index) else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([visible(table.title), *(f"! {visible(note)}" for note in table.notes), "", *aligned])


def to_markdown(table: Table) -> str:
    """A GitHub-flavoured Markdown table under its heading and notes."""
    heads = [column.title for column in table.columns]
    numeric = [index for index in range(len(heads)) if table.numeric(index)]
    notes = "".join(f"> **Note:** {markdown(note)}\n\n" for note in table.notes)
    return f"# {markdown(table.title)}\n\n{notes}{markdown_table(heads, table.shown_rows(), numeric)}\n"


def to_csv(table: Table) -> str:
    """RFC 4180 with the notes as `#` lines first; numbers unrounded beyond what the table shows, empty for none."""
    out = io.StringIO(newline="")
    for note in table.notes:
        out.write(f"# {visible(note)}\r\n")
    writer = csv.writer(out)
    writer.writerow([column.name for column in table.columns])
    for row in table.rows:
        writer.writerow([_csv_value(column, cell) for column, cell in zip(table.columns, row, strict=True)])
    return out.getvalue()


def _csv_value(column: Column, cell: Cell) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    return csv_cell(cell) if isinstance(cell, str) else f"{cell:.{column.decimals}f}"


def percent(fraction: float) -> float:
    """A fraction in percent."""
    return 100 * fraction


def table_3(results: Results, notes: Sequence[str], *, literature: bool = True) -> Table:
    """Our rows of Table 3, each beside the paper's figure, then the literature as the paper lists it."""
    rows: list[tuple[Cell, ...]] = []
    for model in results.models:
        interval = metrics.accuracy_interval(results.correct[model])
        ours, printed, top5 = percent(results.accuracy(model)), results.paper[model], results.top5(model)
        rows.append(
            (
                TITLES[model],
                ours,
                percent(interval.low),
                percent(interval.high),
                None if top5 is None else percent(top5),
                printed,
                None if printed is None else ours - printed,
            )
        )
    published = paper.DATASETS.get(results.dataset)
    rows += [
        (row.model, None, None, None, None, row.accuracy(results.dataset), None)
        for row in paper.TABLE_3
        if literature and row.accuracy(results.dataset) is not None
    ]
    videos = f"{len(results.video_ids):,} test videos"
    return Table(
        title=f"Table 3: {published or results.dataset}, split {results.split}, {results.pool} pooling, {videos}",
        notes=tuple(notes),
        columns=(
            Column(title="model", name="model"),
            Column(title="accuracy %", name="accuracy_percent", decimals=2),
            Column(title="95 % from", name="interval_low_percent", decimals=2),
            Column(title="to", name="interval_high_percent", decimals=2),
            Column(title="top-5 %", name="top5_percent", decimals=2),
            Column(title="paper %", name="paper_percent", decimals=2),
            Column(title="difference", name="difference_points", decimals=2, signed=True),
        ),
        rows=tuple(rows),
    )


def per_class_table(results: Results, notes: Sequence[str]) -> Table:
    """Accuracy of each class for each model, and the class it is most often taken for."""
    matrix = results.confusion()
    shares = {model: results.per_class(model) for model in MODELS}
    rows: list[tuple[Cell, ...]] = []
    for index, name in enumerate(results.classes):
        others = matrix[index, : len(results.classes)].copy()
        others[index] = 0
        rival = int(others.argmax())
        taken_for = (results.classes[rival], int(others[rival])) if others[rival] else (None, None)
        rows.append(
            (name, int(matrix[index].sum()), *(percent(float(shares[model][index])) for model in MODELS), *taken_for)
        )
    return Table(
        title=f"Accuracy per class: {results.dataset}, split {results.split}, {results.pool} pooling",
        notes=tuple(notes),
        columns=(
            Column(title="class", name="class"),
            Column(title="videos", name="videos"),
            *(Column(title=f"{model} %", name=f"{model}_percent", decimals=1) for model in MODELS),
            Column(title="most often taken for", name="taken_for"),
            Column(title="times", name="times"),
        ),
        rows=tuple(rows),
    )
