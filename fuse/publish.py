"""Write one split's report: page, tables, figures, and results.json last, each file replaced at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cache.files import write_bytes_durably, write_json_durably
from fuse.figures import draw_confusion, draw_per_class
from fuse.page import page_of
from fuse.report import render
from fuse.results import Results
from fuse.samples import Frames, Sample, draw_samples
from fuse.samples import for_page as samples_for_page
from fuse.summary import Made, summarise
from fuse.tables import Table, per_class_table, table_3, to_csv, to_markdown
from fuse.timing import Timing, draw_timing
from fuse.timing import for_page as timing_for_page


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What a report shows beside a split's results, as far as it was made."""

    samples: Sequence[Sample] = ()
    frames: Frames = field(default_factory=dict)
    timing: Timing | None = None
    """Figure 6."""
    sweeps: Mapping[str, Table] = field(default_factory=dict)
    """Tables 1 and 2, by their files' names."""


def publish(folder: Path, results: Results, notes: Sequence[str], made: Made, extras: Extras) -> Path:
    """Write all outputs into `folder` and return the path of the page.

    A reader finds each file old or new, never half; results.json is written last and so stands for a whole report.
    """
    tables = {**extras.sweeps, "table3": table_3(results, notes), "per_class": per_class_table(results, notes)}
    files = {
        **{f"{name}.csv": to_csv(table).encode() for name, table in tables.items()},
        **{f"{name}.md": to_markdown(table).encode() for name, table in tables.items()},
        **draw_confusion(results, notes),
        **draw_per_class(results, notes),
        **(draw_samples(results, extras.samples, extras.frames, notes) if extras.samples else {}),
        **(draw_timing(extras.timing) if extras.timing else {}),
        "report.html": html(results, notes, made, extras).encode(),
    }
    for name, content in files.items():
        write_bytes_durably(folder / name, content)
    write_json_durably(folder / "results.json", summarise(results, notes, made))
    return folder / "report.html"


def html(results: Results, notes: Sequence[str], made: Made, extras: Extras) -> str:
    """The page."""
    shown = {
        "samples": samples_for_page(extras.samples, extras.frames, results.classes),
        "timing": timing_for_page(extras.timing) if extras.timing else None,
        "sweeps": list(extras.sweeps.values()),
    }
    return render({**page_of(results, notes, made), **shown})
