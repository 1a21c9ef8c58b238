"""Tables as data, written for a terminal, as Markdown or as CSV; Table 3 and the accuracy of each class."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from cache.common.text import csv_cell, markdown, markdown_table, text_table, visible
from fuse import paper
from fuse.results import MODELS, TITLES, Model, Results

Cell = str | float | int | None

NONE: Final = "–"
"""Shown in place of a missing figure."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table."""

    title: str
    """Heading for people."""
    name: str
    """Heading for programs (CSV)."""
    decimals: int = 0
    signed: bool = False
    """Whether numbers are differences, written with + or −."""

    def text(self, cell: Cell) -> str:
        """The cell as people read it."""
        if cell is None or cell != cell:  # NaN
            return NONE
        if isinstance(cell, str):
            return cell
        number = f"{cell:{'+' if self.signed else ''}.{self.decimals}f}"
        return number.replace("-", "−") if self.signed else number

    def csv(self, cell: Cell) -> str:
        """The cell as programs read it."""
        if cell is None or cell != cell:  # NaN
            return ""
        return csv_cell(cell) if isinstance(cell, str) else f"{cell:.{self.decimals}f}"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A heading, notes, and rows of cells."""

    title: str
    notes: tuple[str, ...]
    """What has to be known before reading the figures."""
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def numeric(self, index: int) -> bool:
        """Whether a column holds numbers, which are set flush right."""
        return not any(isinstance(row[index], str) for row in self.rows)

    def shown_rows(self) -> Iterator[list[str]]:
        """The rows as people read them, before any escaping."""
        for row in self.rows:
            yield [column.text(cell) for column, cell in zip(self.columns, row, strict=True)]

    def shown(self) -> tuple[list[str], Iterator[list[str]], list[int]]:
        """The headings, the rows as people read them, and the columns that are set flush right."""
        numeric = [index for index in range(len(self.columns)) if self.numeric(index)]
        return [column.title for column in self.columns], self.shown_rows(), numeric

    def without_empty(self) -> "Table":
        """The same table without the columns that have no figure in any row."""
        kept = [index for index in range(len(self.columns)) if any(row[index] is not None for row in self.rows)]
        rows = tuple(tuple(row[index] for index in kept) for row in self.rows)
        return replace(self, columns=tuple(self.columns[index] for index in kept), rows=rows)


def to_text(table: Table) -> str:
    """For a terminal of 80 columns, but for the notes: aligned columns, those without any figure left out."""
    notes = [f"! {visible(note)}" for note in table.notes]
    return "\n".join([visible(table.title), *notes, "", text_table(*table.without_empty().shown())])


def to_markdown(table: Table) -> str:
    """A GitHub-flavoured Markdown table under its heading and notes; columns without any figure are left out."""
    notes = "".join(f"> **Note:** {markdown(note)}\n\n" for note in table.notes)
    return f"# {markdown(table.title)}\n\n{notes}{markdown_table(*table.without_empty().shown())}\n"


def to_csv(table: Table) -> str:
    """RFC 4180 after the notes as `#` lines; numbers with the table's decimals, a missing figure is empty."""
    out = io.StringIO(newline="")
    for note in table.notes:
        out.write(f"# {visible(note)}\r\n")
    writer = csv.writer(out)
    writer.writerow([column.name for column in table.columns])
    for row in table.rows:
        writer.writerow([column.csv(cell) for column, cell in zip(table.columns, row, strict=True)])
    return out.getvalue()


def table_3(results: Results, notes: Sequence[str]) -> Table:
    """Our rows of Table 3, each beside the paper's figure, then the literature as the paper lists it."""
    literature = [(row.model, row.accuracy(results.dataset)) for row in paper.TABLE_3]
    rows = tuple((model, *[None] * 6, accuracy, None) for model, accuracy in literature if accuracy is not None)
    ours = models_table(results, notes)
    return replace(ours, rows=ours.rows + rows)


def models_table(results: Results, notes: Sequence[str], titles: Mapping[Model, str] = TITLES) -> Table:
    """The figures of our models alone, which are called by their `titles`."""
    kind = "Table 3" if results.dataset in paper.DATASETS else "Accuracy"
    name, test = paper.DATASETS.get(results.dataset, results.dataset), f"{len(results.video_ids):,} test {results.noun}"
    return Table(
        title=f"{kind}: {name}, split {results.split}, {results.pool} pooling, {test}",
        notes=tuple(notes),
        columns=(
            Column(title="model", name="model"),
            Column(title="accuracy %", name="accuracy_percent", decimals=2),
            Column(title="95 % from", name="interval_low_percent", decimals=2),
            Column(title="to", name="interval_high_percent", decimals=2),
            Column(title="linear %", name="linear_percent", decimals=2),
            Column(title="macro %", name="macro_percent", decimals=2),
            Column(title="top-5 %", name="top5_percent", decimals=2),
            Column(title="paper %", name="paper_percent", decimals=2),
            Column(title="difference", name="difference_points", decimals=2, signed=True),
        ),
        rows=tuple(
            (titles[model], *(None if each is None else 100 * each for each in results.figures(model).values()))
            for model in results.models
        ),
    )


def per_class_table(results: Results, notes: Sequence[str]) -> Table:
    """Accuracy of each class for each model, and the class it is most often taken for."""
    videos = results.confusion().sum(axis=1).tolist()
    shares = [results.per_class(model).tolist() for model in MODELS]
    rows = [
        (name, videos[index], *(100 * share[index] for share in shares), *(rival or (None, None)))
        for index, (name, rival) in enumerate(zip(results.classes, results.rivals(), strict=True))
    ]
    return Table(
        title=f"Accuracy per class: {results.dataset}, split {results.split}, {results.pool} pooling",
        notes=tuple(notes),
        columns=(
            Column(title="class", name="class"),
            Column(title=results.noun, name="videos"),
            *(Column(title=f"{model} %", name=f"{model}_percent", decimals=1) for model in MODELS),
            Column(title="most often taken for", name="taken_for"),
            Column(title="times", name="times"),
        ),
        rows=tuple(rows),
    )
