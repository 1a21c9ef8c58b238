"""Tables for people and programs, and the paper's tables against its text."""

import csv
import io
import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.common.text import csv_cell, markdown
from fuse import paper
from fuse.caveats import caveats
from fuse.report.tables import Column, Table, per_class_table, table_3, to_csv, to_markdown, to_text
from fuse.summary import summarise
from tests.helpers.golden import check_golden
from tests.helpers.scores import MADE, hand_worked_results, results_of_a_subset


@pytest.mark.parametrize("make", [table_3, per_class_table])
@pytest.mark.parametrize("kind", ["md", "csv", "txt"])
def test_tables_are_as_they_were(make, kind: str) -> None:  # type: ignore[no-untyped-def]
    results = results_of_a_subset()
    write = {"md": to_markdown, "csv": to_csv, "txt": to_text}[kind]
    check_golden(f"fuse/{make.__name__}.{kind}", write(make(results, caveats(results))))


def test_results_json_is_as_it_was() -> None:
    results = results_of_a_subset()
    check_golden("fuse/results.json", json.dumps(summarise(results, caveats(results), MADE), indent=2) + "\n")


def test_results_json_has_the_promised_keys() -> None:
    summary = summarise(hand_worked_results(), [], MADE)
    assert summary["accuracy"] == {"low": 0.0, "mid": 1.0, "high": 1.0, "fused": 1.0, "mean": 0.5}
    assert summary["fusion_weights"] == {"high": 0.7, "mid": 0.2, "low": 0.1}
    promised = "dataset split videos missing_videos suspect_videos accuracy fusion_weights paper weights fingerprint"
    assert set(promised.split()) <= set(summary)
    assert summary["videos"] == 2
    assert summary["paper"] == {}


def test_the_papers_figures_stand_beside_ours_as_fractions() -> None:
    summary = summarise(results_of_a_subset(), [], MADE)
    assert summary["paper"] == {"low": 0.465, "mid": 0.6416, "high": 0.8138, "fused": 0.819}


def test_the_papers_own_figures_agree_with_one_another() -> None:
    assert max(paper.TABLE_1.values()) == paper.TABLE_1[1024, 3] == paper.TABLE_2["hmdb51", "mean"]["high"]
    assert round(max(paper.TABLE_1.values()) - min(paper.TABLE_1.values()), 1) == 6.9  # said in section 5.1
    fused = next(row for row in paper.TABLE_3 if row.model == paper.FUSED)
    high = next(row for row in paper.TABLE_3 if row.model == paper.HIGH)
    for dataset in paper.DATASETS:
        assert high.accuracy(dataset) == round(paper.TABLE_2[dataset, "mean"]["high"], 1)
        spatial = next(row for row in paper.TABLE_3 if row.model.startswith("Spatial"))
        said = {"hmdb51": 10.8, "ucf101": 8.9}[dataset]
        assert (fused.accuracy(dataset) or 0) - (spatial.accuracy(dataset) or 0) == pytest.approx(said)


def test_max_pooling_has_no_published_fusion() -> None:
    assert paper.accuracy("ucf101", "max") == {"low": 45.23, "mid": 64.96, "high": 81.25, "fused": None, "mean": None}
    assert set(paper.accuracy("demo", "mean").values()) == {None}


def table_of(*cells: str) -> Table:
    return Table(title="t", notes=(), columns=(Column(title="n", name="n"),), rows=tuple((cell,) for cell in cells))


@given(st.text(max_size=40))
def test_a_csv_cell_comes_back_and_is_no_formula(name: str) -> None:
    cells = list(csv.reader(io.StringIO(to_csv(table_of(name)), newline="")))
    got = cells[1][0] if len(cells) > 1 and cells[1] else ""
    assert got == csv_cell(name)
    assert not got.startswith(("=", "+", "-", "@", "\t", "\r"))


@given(st.text(string.printable + "\u202e\u2028é漢", max_size=40))
def test_a_markdown_cell_stays_one_cell_of_one_line(name: str) -> None:
    line = to_markdown(table_of(name)).splitlines()[4]
    assert line.startswith("| ")
    assert line.endswith(" |")
    inside = line[2:-2]
    assert inside.replace("\\|", "").count("|") == 0
    assert markdown(name) == inside or not name.strip()
