"""Progress: what is legible of it on terminals of several widths, and in a log."""

import io
import re
import sys

import pytest

from cache.common import progress as module
from cache.common.progress import about, duration, progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in its only element."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Standard error, as a terminal, from here on: pytest sets it anew between fixtures and the test."""
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    return stream


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (99.4, "99 s"), (99.6, "1 min 40 s"), (257, "4 min 17 s"), (599.7, "10 min"), (5998, "1 h 40 min"),
     (5930, "99 min"), (47 * 3600, "47 h 00 min"), (76 * 3600, "3 d 4 h")],
)  # fmt: skip
def test_durations_are_as_precise_as_people_want_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(1, "5 s"), (83, "85 s"), (100, "2 min"), (599, "10 min"), (7000, "1 h 57 min")]
)
def test_estimates_pretend_no_precision(seconds: float, text: str) -> None:
    assert about(seconds) == f"about {text}"


def test_a_log_has_a_line_now_and_then_and_no_control_characters(
    capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    with progress("reading", 3600, "videos") as shown:
        for done in range(3600):
            clock[0] += 1
            shown.update(done, "1 failed")
    lines = capsys.readouterr().err.splitlines()
    assert 20 < len(lines) < 60
    assert lines[0] == "reading: 29/3,600 videos, 60 min left, 1/s, 1 failed"
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_count_time_left_rate_and_failures_are_legible_at_every_width(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    """Ten long videos are done, and nine of ten frames are left: the time left goes by these."""
    terminal = on_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", str(columns))
    frames = [0.0]
    with progress("extract", 13_320, "videos", frames=lambda: (frames[0], 1_200_000)) as shown:
        for _ in range(40):
            clock[0] += 1
            frames[0] += 1000
            shown.update(1234, "17 failed, decode 2 %, transfer 3 %, forward 94 %, write 1 %")
    said = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    videos, frames_per = ("", "") if columns == 60 else (" videos", " frames")
    assert f"extract 1,234/13,320{videos}, 19 min left, 1,000{frames_per}/s, 17 failed" in said
    assert re.search(r"extract: about 20 min left, until \d\d:\d\d\n", said), "after half a minute, once"
    assert said.count("about") == 1
    assert all(len(line.rstrip()) <= columns for line in re.split(r"[\r\n]", said))


def test_the_start_of_the_work_is_no_part_of_its_rate(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress("sweep", 10, "runs") as shown:
        clock[0] += 1000
        shown.update(0)
        clock[0] += 31
        shown.update(1)
    assert capsys.readouterr().err.splitlines()[-1] == "sweep: 1/10 runs, 4 min 39 s left, 0.0323/s"


def test_a_dumb_terminal_is_treated_as_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    with progress("reading", 10, "videos") as shown:
        shown.update(4)
    assert terminal.getvalue() == ""
