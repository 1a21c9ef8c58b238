"""How the workers are doing: rates by node, failures by reason, where their time goes. Needs no Ray."""

import re
import threading
import time
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from typing import Final

from cache.commit import StagedShard
from cache.common.text import some
from extract.meter import STAGES, Forecast, Meter

RECENT_SECONDS: Final = 300.0
SHOWN: Final = 4
"""Nodes or reasons shown; the others are counted."""

_DETAIL = re.compile(r"[:;(].*|\d[\d,.]*", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class TaskReport:
    """What a worker made of a task."""

    staged: tuple[StagedShard, ...] = ()
    """Its shards, which wait to be committed."""
    error: str = ""
    """Why there are none: something that the next task would meet as well, as a text for the user."""
    node: str = ""
    """Name of the machine."""
    frames: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """By what the worker did or waited for, see `extract.meter.STAGES`, and "task": the whole task."""
    idle_seconds: float = 0.0
    """Between the end of the worker's last task, or its start, and this task."""


class ClusterProgress:
    """Counts of a running extraction; one thread adds reports, another one may show them."""

    def __init__(self, forecast: Forecast | None = None) -> None:
        self.meter = Meter(forecast)
        self.failures: Counter[str] = Counter()
        """By reason, see `kind_of`."""
        self.seconds: defaultdict[str, float] = defaultdict(float)
        """Of all workers, see `TaskReport.seconds`, and "idle"."""
        self._recent: deque[tuple[float, str, int]] = deque()
        self._started = time.monotonic()
        self._lock = threading.Lock()

    def add(self, report: TaskReport) -> None:
        """Count a report."""
        with self._lock:
            for shard in report.staged:
                for outcome in shard.outcomes:
                    self.meter.finish(outcome)
                self.failures.update(kind_of(each.reason) for each in shard.outcomes if each.status == "failed")
            self.meter.frames += report.frames
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
        """Where the workers' time went, for the end."""
        total = max(self.seconds["task"] + self.seconds["idle"], 1e-9)
        shares = ", ".join(f"{each} {100 * self.seconds[each] / total:.1f} %" for each in (*STAGES, "idle"))
        return f"workers' time: {shares}; {100 * self.overhead:.1f} % outside decoding and the network"

    def text(self) -> str:
        """Rates and failures, for a progress line."""
        with self._lock:
            rates, failures = self.rates(), self.failures.copy()
        parts = [f"{failures.total()} failed ({_some(failures)})"] if failures else []
        return ", ".join([*parts, f"frames/s by node: {_some(rates)}"] if len(rates) > 1 else parts)


def kind_of(reason: str) -> str:
    """A reason without its details, so that "decoder crashed with SIGSEGV (libx.so)" and its like count together."""
    return _DETAIL.sub("", reason).strip() or reason


def _some(counts: Counter[str]) -> str:
    return some([f"{name} {count}" for name, count in counts.most_common()], SHOWN)
