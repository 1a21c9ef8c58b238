"""Where the time of an extraction goes: seconds of its main thread, by what it did or waited for."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from cache.common.interrupts import let_through
from cache.ledger import FileState, Outcome

STAGES: Final = ("decode", "transfer", "forward", "write")
"""Waiting for frames; copying and resizing them; the network; passing results on and waiting for the disk."""

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """How many frames the videos of an extraction have, by the sizes of their files in bytes."""

    size: float
    """Of all files."""
    usual_size: float
    """Taken for a file whose size is not known, as of a remote video."""
    most_size: float
    """A larger file has no more frames than one of this size, as only the first ones are kept."""
    sampled_frames: float
    """Frames of some videos, as their headers declare or as extracted."""
    sampled_size: float
    """Of the files of these videos."""

    @property
    def frames(self) -> float:
        """Frames of all videos, before any of them is extracted."""
        return self.size * self.sampled_frames / self.sampled_size

    def size_of(self, file: FileState | None) -> float:
        """What one video counts."""
        return min(self.usual_size if file is None else file.size, self.most_size)


@dataclass
class Meter:
    """Counts and seconds of a running extraction; another thread may show them."""

    forecast: Forecast | None = None
    frames: int = 0
    """Frames decoded and packed."""
    finished: int = 0
    """Videos with an outcome."""
    failed: int = 0
    finished_frames: int = 0
    """Frames of these videos, without the failed ones."""
    finished_size: float = 0.0
    """Of these videos, see `Forecast.size_of`."""
    failed_size: float = 0.0
    """Of those among them that failed."""
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    def finish(self, outcome: Outcome) -> None:
        """Count a video."""
        size = self.forecast.size_of(outcome.file) if self.forecast else 0.0
        self.finished += 1
        self.finished_frames += outcome.num_frames
        self.finished_size += size
        if outcome.status == "failed":
            self.failed += 1
            self.failed_size += size

    def amounts(self) -> tuple[float, float]:
        """Frames that are done, and about how many there are in all: by what was met so far, and by the forecast."""
        if self.forecast is None:
            return self.frames, self.frames
        known = self.forecast.sampled_size + self.finished_size - self.failed_size
        per_byte = (self.forecast.sampled_frames + self.finished_frames) / known
        left = max(self.forecast.size - self.finished_size, 0.0) * per_byte
        return self.frames, self.finished_frames + left

    def counts(self) -> dict[str, Any]:
        """All counts and seconds, as JSON."""
        return {name: value for name, value in vars(self).items() if name != "forecast"}

    def add_up(self, counts: Sequence[Mapping[str, Any]]) -> None:
        """Become the sum of the `counts` of other meters."""
        for name in self.counts().keys() - {"seconds"}:
            setattr(self, name, sum(each[name] for each in counts))
        self.seconds = {stage: sum(each["seconds"][stage] for each in counts) for stage in STAGES}

    @contextmanager
    def during(self, stage: str) -> Iterator[None]:
        """Add the time of the `with` block to `stage`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - started

    def waiting(self, stage: str, items: Iterable[Item]) -> Iterator[Item]:
        """The same items; the time until each one comes is added to `stage`. Ctrl-C may stop this waiting."""
        iterator = iter(items)
        while True:
            with self.during(stage), let_through():
                item = next(iterator, None)
            if item is None:
                return
            yield item

    def shares(self) -> str:
        """Shares of the time so far, as "decode 2 %, transfer 3 %, forward 94 %, write 1 %"; empty at the beginning."""
        total = sum(self.seconds.values())
        return ", ".join(f"{name} {100 * spent / total:.0f} %" for name, spent in self.seconds.items()) if total else ""

    def text(self) -> str:
        """Failures and shares, for a progress line."""
        return ", ".join(filter(None, [f"{self.failed} failed" if self.failed else "", self.shares()]))


@contextmanager
def ticking(every_seconds: float, action: Callable[[], None]) -> Iterator[None]:
    """Call `action` every so many seconds in a thread of its own while the `with` block runs, and once at its end."""
    stop = threading.Event()

    def repeat() -> None:
        while not stop.wait(every_seconds):
            action()

    thread = threading.Thread(target=repeat, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        action()
