"""Timelines as text, JSON lines, CSV and subtitles (WebVTT), printed as they come."""

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final, Literal

import click
import numpy as np

from cache.common.console import say
from cache.common.errors import MrrnError
from cache.common.text import csv_cell, visible
from extract.decode import DEFAULT_DECODER, DecodePool
from extract.network.engine import Engine
from extract.pipeline import decode_settings
from extract.settings import ExtractSettings
from fuse.answers import finish
from fuse.caveats import weights_caveats
from fuse.metrics import ranked
from fuse.timeline import Event, Segment, TimelineEnd, timeline
from fuse.trained import Heads

Shape = Literal["text", "json", "csv", "vtt"]
"""How a timeline is written."""

NONE_OF_THESE: Final = "none of these"

STRIP_WIDTH: Final = 76
"""Characters of the strip, which stands for the whole video."""

_LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_COLOURS: Final = ("green", "yellow", "blue", "magenta", "cyan", "red", "white")


def show_timelines(
    heads: Heads,
    settings: ExtractSettings,
    engine: Engine,
    files: Sequence[Path],
    shape: Shape,
    follow_seconds: float | None,
) -> None:
    """Print the timeline of each video as it is computed, and set the exit code."""
    if follow_seconds is not None and settings.decoder != DEFAULT_DECODER:
        raise MrrnError(f"--follow decodes by {DEFAULT_DECODER}; these heads' features were made by {settings.decoder}")
    plain = False if "NO_COLOR" in os.environ else None
    writer = Writer(shape, heads.classes, style=lambda text, colour: click.style(text, fg="black", bg=colour))
    notes = weights_caveats(heads.identity)
    for note in notes if shape in ("text", "csv") else ():
        say(f"! {note}", err=shape == "csv")

    for line in writer.head(notes):
        click.echo(line, color=plain)
    with DecodePool(decode_settings(settings)) as pool:
        for path in files:
            events = timeline(path, heads, settings, engine, pool, follow_seconds)
            name = "-" if path.match("/proc/*/fd/*") else str(path)
            for line in writer.lines(name, events):
                click.echo(line, color=plain)
    finish(writer.failed, len(files), "read to the end")


class Strip:
    """A video as a line of letters, one for the class that takes most of each cell. Memory does not grow with it."""

    def __init__(self, width: int = STRIP_WIDTH) -> None:
        self._width, self._cell_seconds = width, 0.01
        self._cells: list[Counter[int | None]] = []
        self.seconds: Counter[int | None] = Counter()

    def add(self, segment: Segment) -> None:
        """Add the next segment."""
        self.seconds[segment.label] += segment.end_seconds - segment.start_seconds  # type: ignore[assignment]
        while segment.end_seconds > 2 * self._width * self._cell_seconds:
            self._cell_seconds *= 2
            pairs = [self._cells[index : index + 2] for index in range(0, len(self._cells), 2)]
            self._cells = [sum(pair, Counter()) for pair in pairs]
        at = segment.start_seconds
        while at < segment.end_seconds:
            cell = int(at / self._cell_seconds)
            until = min((cell + 1) * self._cell_seconds, segment.end_seconds)
            while len(self._cells) <= cell:
                self._cells.append(Counter())
            self._cells[cell][segment.label] += max(until - at, 0.0)  # type: ignore[assignment]
            at = until if until > at else np.nextafter(until, np.inf)

    def labels(self) -> list[int | None]:
        """The class of each character of the line."""
        cells = [cell for cell in self._cells if cell]
        if not cells:
            return []
        width = min(self._width, len(cells))
        edges = [round(index * len(cells) / width) for index in range(width + 1)]
        joined = [sum(cells[start:stop], Counter()) for start, stop in pairwise(edges)]
        return [cell.most_common(1)[0][0] for cell in joined]


def clock(seconds: float) -> str:
    """`0:07.4`, `1:02:03.0`: a time for people."""
    tenths = round(seconds * 10)
    hours, minutes = divmod(tenths // 600, 60)
    text = f"{minutes:02}:{tenths % 600 / 10:04.1f}" if hours else f"{minutes}:{tenths % 600 / 10:04.1f}"
    return f"{hours}:{text}" if hours else text


def _stamp(seconds: float) -> str:
    """A time in WebVTT."""
    thousandths = round(seconds * 1000)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest / 1000:06.3f}"


Style = Callable[[str, str], str]
"""Text and colour -> the text as it is printed."""


@dataclass
class Writer:
    """Events of a video as lines of text, in one of the shapes."""

    shape: Shape
    classes: Sequence[str]
    style: Style = lambda text, _colour: text
    strip: Strip = field(default_factory=Strip)
    failed: dict[str, str] = field(default_factory=dict)
    """Why videos could not be read to their end, by their ids."""

    def head(self, notes: Iterable[str]) -> Iterator[str]:
        """What stands before all videos."""
        if self.shape == "json":
            yield json.dumps({"kind": "notes", "notes": list(notes), "classes": list(self.classes)})
        elif self.shape == "csv":
            yield _row(["video", "label", "start", "end", "probability", "windows"])
        elif self.shape == "vtt":
            yield "WEBVTT\n"
            yield from (f"NOTE {_vtt(note)}\n" for note in notes)

    def lines(self, video: str, events: Iterable[Event]) -> Iterator[str]:
        """The lines of one video."""
        self.strip = Strip()
        if self.shape == "text":
            yield visible(video)
        for event in events:
            if isinstance(event, Segment):
                self.strip.add(event)
            elif isinstance(event, TimelineEnd) and event.outcome.status == "failed":
                self.failed[event.outcome.video_id] = event.outcome.reason
            yield from getattr(self, f"_{self.shape}")(video, event)

    def _name(self, label: int | None) -> str:
        return NONE_OF_THESE if label is None else self.classes[label]

    def _json(self, video: str, event: Event) -> Iterator[str]:
        if isinstance(event, TimelineEnd):
            done = event.outcome.status != "failed"
            counts = {"frames": event.outcome.num_frames, "windows": event.windows, "seconds": round(event.seconds, 3)}
            yield json.dumps(
                {"kind": "end", "video": video, "predicted": done, "reason": event.outcome.reason, **counts}
            )
            return
        times = {"start": round(event.start_seconds, 3), "end": round(event.end_seconds, 3)}
        common = {"video": video, **times, "class": self._name(event.label)}
        if isinstance(event, Segment):
            yield json.dumps({"kind": "segment", **common, "probability": event.probability, "windows": event.windows})
        else:
            probabilities = event.probabilities_K
            top = [{"class": self.classes[i], "probability": float(probabilities[i])} for i in ranked(probabilities)]
            yield json.dumps({"kind": "window", **common, "top": top, "fused": probabilities.tolist()})

    def _csv(self, video: str, event: Event) -> Iterator[str]:
        if isinstance(event, Segment):
            times = [f"{event.start_seconds:.3f}", f"{event.end_seconds:.3f}"]
            figures = [f"{event.probability:.4f}", str(event.windows)]
            yield _row([csv_cell(video), csv_cell(self._name(event.label)), *times, *figures])

    def _vtt(self, _video: str, event: Event) -> Iterator[str]:
        if isinstance(event, Segment):
            yield f"{_stamp(event.start_seconds)} --> {_stamp(event.end_seconds)}"
            yield f"{_vtt(self._name(event.label))} {100 * event.probability:.0f} %\n"

    def _text(self, _video: str, event: Event) -> Iterator[str]:
        if isinstance(event, Segment):
            span = f"{clock(event.start_seconds)} – {clock(event.end_seconds)}"
            yield f"  {span:<21}  {100 * event.probability:5.1f} %  {visible(self._name(event.label))}"
        elif isinstance(event, TimelineEnd):
            if event.windows:
                yield from self._drawn(event)
            if event.outcome.reason:
                what = "not read to its end" if event.outcome.status == "failed" else "note"
                yield f"  {what}: {visible(event.outcome.reason)}"

    def _drawn(self, end: TimelineEnd) -> Iterator[str]:
        most = [label for label, _ in self.strip.seconds.most_common(len(_LETTERS))]
        letters = dict(zip(most, _LETTERS, strict=False))
        colours = {label: _COLOURS[index % len(_COLOURS)] for index, label in enumerate(most)}
        labels = self.strip.labels()
        yield "  " + "".join(self.style(letters.get(each, "·"), colours.get(each, "white")) for each in labels)
        last = clock(end.seconds)
        yield f"  0:00.0{last:>{max(len(labels) - 6, len(last) + 1)}}"
        for label in most:
            seconds = self.strip.seconds[label]
            share = 100 * seconds / max(end.seconds, 1e-9)
            name = self.style(letters[label], colours[label])
            yield f"  {name} {visible(self._name(label))}: {clock(seconds)}, {share:.0f} %"
        yield f"  {end.outcome.num_frames:,} frames, {end.windows:,} windows"


def _vtt(text: str) -> str:
    return visible(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _row(cells: Sequence[str]) -> str:
    out = io.StringIO(newline="")
    csv.writer(out).writerow(cells)
    return out.getvalue().removesuffix("\r\n")
