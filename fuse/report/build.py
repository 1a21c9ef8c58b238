"""A split's report on disk: what is read for it, and all of its files."""

from collections.abc import Sequence
from pathlib import Path

from cache.common.files import discard_leftovers, write_bytes_durably, write_sealed_json
from cache.common.interrupts import done_so_far
from fuse.caveats import caveats
from fuse.choice import RunChoice
from fuse.report.figures import draw_confusion, draw_per_class
from fuse.report.html import Extras, html
from fuse.report.samples import choose_mistakes, choose_samples, draw_samples, sample_frames
from fuse.report.sweeps import read_tables
from fuse.report.tables import per_class_table, table_3, to_csv, to_markdown
from fuse.report.timing import draw_timing, read_timing, timing_file
from fuse.results import Results, results_of
from fuse.summary import Made, made_now, summarise


def build(choice: RunChoice) -> tuple[Results, list[str], Path]:
    """Write the report of the chosen runs; returns its figures, their caveats and the path of the page."""
    results, workspace = results_of(choice), choice.workspace
    notes, mistakes, samples = caveats(results), choose_mistakes(results), choose_samples(results)
    with done_so_far(lambda: "the report is as it was before"):
        shown = [each.video for each in (*samples, *mistakes)]
        frames, frames_note = sample_frames(workspace, choice.dataset, shown)
    extras = Extras(
        mistakes=mistakes,
        samples=samples,
        frames=frames,
        frames_note=frames_note,
        timing=read_timing(timing_file(workspace, choice.dataset)),
        sweeps=read_tables(
            workspace,
            choice.dataset,
            notes,
            choice.split,
            results.runs["high"].get("cache_digest"),
            subset=results.cache.dataset.subset is not None,
        ),
    )
    page = publish(workspace.report(choice.dataset, choice.split), results, notes, made_now(), extras)
    return results, notes, page


def publish(folder: Path, results: Results, notes: Sequence[str], made: Made, extras: Extras) -> Path:
    """Write the page, tables, figures and results.json into `folder`; returns the path of the page.

    A reader finds each file old or new, never half; results.json is written last and so stands for a whole report.
    """
    tables = {**extras.sweeps, "table3": table_3(results, notes), "per_class": per_class_table(results, notes)}
    contents = {
        **{f"{name}.csv": to_csv(table).encode() for name, table in tables.items()},
        **{f"{name}.md": to_markdown(table).encode() for name, table in tables.items()},
        **draw_confusion(results, notes),
        **draw_per_class(results, notes),
        **(draw_samples(results, extras.samples, extras.frames, notes) if extras.samples else {}),
        **(draw_timing(extras.timing) if extras.timing else {}),
        "report.html": html(results, notes, made, extras).encode(),
    }
    if folder.exists():
        discard_leftovers(folder)
    for name, content in contents.items():
        write_bytes_durably(folder / name, content)
    write_sealed_json(folder / "results.json", summarise(results, notes, made))
    return folder / "report.html"
