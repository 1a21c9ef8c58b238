"""Progress of long work: a bar on a terminal, a line now and then in a log; durations as text."""

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Protocol

import click

RECENT_SECONDS = 30.0
"""Rates shown are those of this time; after as long, a line says how long it will take."""

SELDOM_SECONDS = 300.0
"""Between two lines of a log, at most."""

NARROW = 70
"""Columns below which there is room for the figures alone: no bar, and no unit beside the count."""

Amounts = Callable[[], tuple[float, float]]
"""What is done and what there is in all, in a finer unit than videos."""


class Progress(Protocol):
    """Shows how far a long piece of work is."""

    def update(self, done: float, text: str = "") -> None:
        """Show that `done` of the total is finished, and `text` beside it (failures, losses)."""


def duration(seconds: float) -> str:
    """ "8 s", "4 min 17 s", "12 min", "2 h 05 min" or "3 d 4 h": as precise as people want to know it."""
    whole = round(seconds)
    minutes = round(seconds / 60)
    if whole < 100:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60:02} s"
    if minutes < 100:
        return f"{minutes} min"
    hours = round(seconds / 3600)
    return f"{minutes // 60} h {minutes % 60:02} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def about(seconds: float) -> str:
    """ "about 85 s", "about 3 min", "about 2 h 05 min": a duration that is estimated."""
    if seconds < 100:
        return f"about {max(5 * round(seconds / 5), 5)} s"
    minutes = round(seconds / 60)
    return f"about {minutes} min" if minutes < 10 else f"about {duration(60 * minutes)}"


class _Rate:
    """How fast and how long still, by the last half minute."""

    def __init__(self, total: float, unit: str, initial: float, frames: Amounts | None) -> None:
        self.total, self.unit, self.frames = total, unit, frames
        self.started = time.monotonic()
        self.first = frames()[0] if frames else initial
        self.seen = deque([(self.started, self.first)])
        self.left_seconds: float | None = None
        self.per_second = 0.0

    def count(self, done: float) -> None:
        now = time.monotonic()
        fine, total = self.frames() if self.frames else (done, self.total)
        if fine <= self.first:  # what is loaded and started first is no part of the rate
            self.started = now
            self.seen.clear()
        self.seen.append((now, fine))
        while len(self.seen) > 2 and self.seen[1][0] < now - RECENT_SECONDS:
            self.seen.popleft()
        then, before = self.seen[0]
        if now > then and fine > before:
            self.per_second = (fine - before) / (now - then)
            self.left_seconds = max(total - fine, 0.0) / self.per_second

    def text(self, done: float, more: str, *, narrow: bool = False) -> str:
        """Count, time left, rate, and `more`: what has to be legible comes first."""
        parts = [f"{_number(done)}/{_number(self.total)}" + ("" if narrow else f" {self.unit}")]
        if self.left_seconds is not None:
            rate = f"{self.per_second:,.0f}" if self.per_second >= 100 else f"{self.per_second:.3g}"
            parts += [
                f"{duration(self.left_seconds)} left",
                f"{rate}{' frames' if self.frames and not narrow else ''}/s",
            ]
        return ", ".join([*parts, more] if more else parts)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


class _LineProgress:
    """For logs: a line in `every_seconds`, more seldom as time goes by."""

    def __init__(self, title: str, rate: _Rate, every_seconds: float = RECENT_SECONDS) -> None:
        self.title, self.rate, self.every_seconds = title, rate, every_seconds
        self.last_line = time.monotonic()

    def update(self, done: float, text: str = "") -> None:
        self.rate.count(done)
        now = time.monotonic()
        since = min((now - self.rate.started) / 20, SELDOM_SECONDS)
        if now - self.last_line >= max(self.every_seconds, since):
            self.last_line = now
            click.echo(f"{self.title}: {self.rate.text(done, text)}", err=True)


class _BarProgress:
    def __init__(self, title: str, bar: Any, task: Any, rate: _Rate) -> None:
        self.title, self.bar, self.task, self.rate = title, bar, task, rate
        self.told = False

    def update(self, done: float, text: str = "") -> None:
        self.rate.count(done)
        narrow = self.bar.console.width < NARROW
        self.bar.update(self.task, completed=done, text=self.rate.text(done, text, narrow=narrow))
        if not self.told and time.monotonic() - self.rate.started >= RECENT_SECONDS:
            self.told = True
            if (left := self.rate.left_seconds or 0.0) > 2 * RECENT_SECONDS:
                end = datetime.now().astimezone() + timedelta(seconds=left)
                when = f"{end:%H:%M}" if left < 20 * 3600 else f"{end:%A %H:%M}"
                self.bar.print(f"{self.title}: {about(left)} left, until {when}", markup=False)


@contextmanager
def progress(
    title: str, total: float, unit: str, *, initial: float = 0.0, frames: Amounts | None = None
) -> Iterator[Progress]:
    """Show a bar with time left on a terminal, else a line now and then, on stderr. `initial` was done before.

    `frames`: those done and about how many there are in all; then rate and time left go by them. The bar goes away at
    the end, and after half a minute a line above it says how long the work takes.
    """
    rate = _Rate(total, unit, initial, frames)
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield _LineProgress(title, rate)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar
    from rich.table import Column

    console = Console(stderr=True)
    bar_column = BarColumn(bar_width=None, table_column=Column(width=max(4, min(30, (console.width - 60) // 2))))
    with Bar(
        *([bar_column] if console.width >= NARROW else []),
        # One column, so that a narrow terminal cuts its end and not its count.
        TextColumn("{task.description} {task.fields[text]}", markup=False, table_column=Column(no_wrap=True)),
        console=console,
        transient=True,
        # Else what is printed would leave the file that stdout goes to.
        redirect_stdout=sys.stdout.isatty(),
    ) as bar:
        task = bar.add_task(title, total=total, completed=int(initial), text=rate.text(initial, ""))
        yield _BarProgress(title, bar, task, rate)
