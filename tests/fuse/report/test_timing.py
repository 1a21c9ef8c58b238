"""Figure 6 from a measurement: drawn, shown in the page, refused if it is none."""

import json
from pathlib import Path

import pytest

from cache.common.errors import ScoreError
from fuse.caveats import caveats
from fuse.report.html import Extras, html
from fuse.report.timing import Timed, draw_timing, read_timing
from tests.helpers.scores import MADE, made_up_results


def write_times(path: Path, *models: Timed) -> Path:
    value = {
        "device": "<GPU>",
        "date": "2026-01-02",
        "notes": ["C3D is left out."],
        "models": [vars(each) for each in models],
    }
    path.write_text(json.dumps(value))
    return path


def test_times_are_drawn_and_shown_quickest_first(tmp_path: Path) -> None:
    slow, quick = Timed("slow", False, 4, 30, 2.5, 100, "all"), Timed("quick", True, 10, 30, 0.0125, 100, "head")
    timing = read_timing(write_times(tmp_path / "times.json", slow, quick))
    assert timing is not None
    assert [each.model for each in timing.models] == ["quick", "slow"]
    assert set(draw_timing(timing)) == {"timing.svg", "timing.png", "timing-dark.svg", "timing-dark.png"}
    results = made_up_results(["a", "b"], 8)
    page = html(results, caveats(results), MADE, Extras(timing=timing))
    assert "12.5 ms" in page
    assert "2.50 s" in page
    assert "&lt;GPU&gt;" in page


def test_times_that_are_none(tmp_path: Path) -> None:
    assert read_timing(tmp_path / "gone.json") is None
    (tmp_path / "odd.json").write_text("{}")
    with pytest.raises(ScoreError, match=r"is not a measurement of benchmarks/figure6\.py"):
        read_timing(tmp_path / "odd.json")
