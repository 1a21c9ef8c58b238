"""Write one split's report: page, tables, figures, and results.json last, each file replaced at once."""

from collections.abc import Sequence
from pathlib import Path

from cache.files import write_bytes_durably, write_json_durably
from fuse.figures import draw_confusion, draw_per_class
from fuse.page import page_of
from fuse.report import render
from fuse.results import Results
from fuse.summary import Made, summarise
from fuse.tables import per_class_table, table_3, to_csv, to_markdown


def publish(folder: Path, results: Results, notes: Sequence[str], made: Made) -> Path:
    """Write all outputs into `folder` and return the path of the page.

    A reader finds each file old or new, never half; results.json is written last and so stands for a whole report.
    """
    summary = summarise(results, notes, made)
    tables = {"table3": table_3(results, notes), "per_class": per_class_table(results, notes)}
    files = {
        **{f"{name}.csv": to_csv(table).encode() for name, table in tables.items()},
        **{f"{name}.md": to_markdown(table).encode() for name, table in tables.items()},
        **draw_confusion(results, notes),
        **draw_per_class(results, notes),
        "report.html": render(page_of(results, notes, made)).encode(),
    }
    for name, content in files.items():
        write_bytes_durably(folder / name, content)
    write_json_durably(folder / "results.json", summary)
    return folder / "report.html"
