"""How the whole job is doing: rates by node, failures by reason, what workers' time goes to."""

import re
import time
from collections import Counter, defaultdict, deque
from typing import Final

from extract.cluster.messages import Report

RECENT_SECONDS: Final = 300.0
SHOWN: Final = 4
"""Nodes or reasons shown; the others are counted."""

_DETAIL = re.compile(r"[:;(].*|\d[\d,.]*", re.DOTALL)


class Tally:
    """Counts of a running job."""

    def __init__(self) -> None:
        self.finished = 0
        """Videos with an outcome."""
        self.failures: Counter[str] = Counter()
        """By reason, without what is particular to a video."""
        self.seconds: defaultdict[str, float] = defaultdict(float)
        """Of all workers, see `Report.seconds`, and "idle"."""
        self.first_seconds: float | None = None
        """From the beginning to the first report: workers starting."""
        self._recent: deque[tuple[float, str, int]] = deque()
        self._started = time.monotonic()

    def add(self, report: Report) -> None:
        """Take a report in."""
        if self.first_seconds is None:
            self.first_seconds = time.monotonic() - self._started
        for aside in report.asides:
            self.finished += len(aside.outcomes)
            self.failures.update(kind_of(each.reason) for each in aside.outcomes if each.status == "failed")
        for stage, seconds in report.seconds.items():
            self.seconds[stage] += seconds
        self.seconds["idle"] += report.idle_seconds
        self._recent.append((time.monotonic(), report.node, report.frames))

    @property
    def overhead(self) -> float:
        """Share of the workers' time outside decoding and the network, from their first task on."""
        busy = sum(self.seconds[stage] for stage in ("decode", "transfer", "forward"))
        return 1.0 - busy / max(self.seconds["task"] + self.seconds["idle"], 1e-9)

    def rates(self) -> Counter[str]:
        """Frames a second of each node, over the last minutes."""
        now = time.monotonic()
        while self._recent and self._recent[0][0] < now - RECENT_SECONDS:
            self._recent.popleft()
        frames: Counter[str] = Counter()
        for _, node, count in self._recent:
            frames[node] += count
        span = min(now - self._started, RECENT_SECONDS)
        return Counter({node: round(count / max(span, 1e-9)) for node, count in frames.items()})

    def summary(self) -> str:
        """For the end of a job."""
        total = max(self.seconds["task"] + self.seconds["idle"], 1e-9)
        stages = ("decode", "transfer", "forward", "write", "idle")
        shares = ", ".join(f"{stage} {100 * self.seconds[stage] / total:.1f} %" for stage in stages)
        return f"workers' time: {shares}; {100 * self.overhead:.1f} % outside decoding and the network"

    def text(self) -> str:
        """For a progress line."""
        rates = self.rates()
        parts = [f"{rates.total()} frames/s" + (f" ({_some(rates)})" if rates else "")]
        if self.failures:
            parts.append(f"{self.failures.total()} failed ({_some(self.failures)})")
        return ", ".join(parts)


def kind_of(reason: str) -> str:
    """A reason without its details: "decoder crashed with SIGSEGV (libx.so)" and its like are counted together."""
    return _DETAIL.sub("", reason).strip() or reason


def _some(counts: Counter[str]) -> str:
    named = [f"{name} {count}" for name, count in counts.most_common(SHOWN)]
    return ", ".join(named + ([f"{len(counts) - SHOWN} more"] if len(counts) > SHOWN else []))
