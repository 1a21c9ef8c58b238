"""Where the time of an extraction goes: seconds of its main thread, by what it did or waited for."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, TypeVar

from cache.common.console import RECENT_SECONDS
from cache.common.interrupts import let_through
from cache.ledger import Outcome

STAGES: Final = ("decode", "transfer", "forward", "write")
"""Waiting for frames; copying and resizing them; the network; passing results on and waiting for the disk."""

Item = TypeVar("Item")


@dataclass
class Meter:
    """Counts and seconds of a running extraction; another thread may show them."""

    frames: int = 0
    """Frames decoded and packed."""
    batches: int = 0
    finished: int = 0
    """Videos with an outcome."""
    failed: int = 0
    started: float = field(default_factory=time.perf_counter)
    recent: deque[tuple[float, int]] = field(default_factory=lambda: deque([(time.perf_counter(), 0)]))
    """Times and frames then, of the last half minute."""
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    def finish(self, outcome: Outcome) -> None:
        """Count a video."""
        self.finished += 1
        self.failed += outcome.status == "failed"

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
        """Failures, the rate of the last half minute, and shares, for a progress line."""
        self.recent.append((time.perf_counter(), self.frames))
        while len(self.recent) > 2 and self.recent[1][0] < self.recent[-1][0] - RECENT_SECONDS:
            self.recent.popleft()
        (then, before), (now, frames) = self.recent[0], self.recent[-1]
        rate = (frames - before) / max(now - then, 1e-9)
        parts = [*([f"{self.failed} failed"] if self.failed else []), f"{rate:.0f} frames/s", self.shares()]
        return ", ".join(part for part in parts if part)


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
