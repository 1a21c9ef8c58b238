"""A worker of the pool: a Ray actor with the network on its device, decoders beside it, the cache's folder in sight.

Frames stay on the machine that decodes them, in memory shared with its decoders: they are over a hundred times larger
than the features that leave it.
"""

import socket
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cache.common.errors import MrrnError
from cache.fingerprint import check_fingerprint
from cache.ledger import Outcome
from cache.store import FeatureCache
from extract.cluster.messages import Report, report_row, task_of
from extract.decode import DecodePool
from extract.device import shard_rows
from extract.meter import Meter
from extract.network.engine import open_engine
from extract.network.weights import Weights
from extract.pipeline import VideoFeatures, decode_settings, extract_features, failed
from extract.settings import ExtractSettings, fingerprint
from extract.shards import FinishedShard, Task, shard_data, shards_of

if TYPE_CHECKING:
    from ray import ObjectRef

DEATHS: Final = 3
"""Workers that a video may take with it before it is given up: one among others, the rest alone."""


@dataclass(frozen=True)
class Assignment:
    """What all workers of a job have in common."""

    open_cache: Callable[[], FeatureCache]
    """The cache where a worker is: its folder, which all machines see, or what the object store has."""
    settings: ExtractSettings
    strict: bool
    allow_drift: bool


class Deaths:
    """A Ray actor beside the driver: counts work that was begun and never ended, because its worker died."""

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()

    def begin(self, work: str) -> int:
        """How many workers died of `work` so far; one more, unless `end` is called."""
        self._begun[work] += 1
        return self._begun[work] - 1

    def end(self, work: str) -> None:
        """`work` was done: its workers lived."""
        del self._begun[work]


class Extractor:
    """What Ray Data calls with one task after the other, in a process that has a device for itself."""

    def __init__(self, assignment: Assignment, weights: "ObjectRef[Weights]", deaths: Any) -> None:
        """`deaths` is the handle of a `Deaths` actor."""
        import ray

        self._assignment, self._deaths = assignment, deaths
        # A host may have several nodes, and containers on many machines the same host name.
        self._node = f"{socket.gethostname()}-{ray.get_runtime_context().get_node_id()[:6]}"
        self._problem = ""
        try:
            self._start(weights)
        except Exception as error:  # noqa: BLE001  (the driver raises it)
            self._problem = _in_words(error, self._node)
        self._idle_since = time.monotonic()

    def _start(self, weights_there: "ObjectRef[Weights]") -> None:
        import ray

        settings, weights = self._assignment.settings, ray.get(weights_there)
        self._cache = self._assignment.open_cache()
        ours = fingerprint(settings, weights_text=weights.text, weights_sha256=weights.sha256)
        where = f"the cache {self._cache.path}"
        check_fingerprint(self._cache.fingerprint, ours, allow_drift=self._assignment.allow_drift, where=where)
        self._environment = ours.environment
        self._open(weights)

    def _open(self, weights: Weights) -> None:
        """The device and the decoders, for as long as this process lives."""
        self._engine = open_engine(self._assignment.settings, weights)
        self._pool = DecodePool(decode_settings(self._assignment.settings)).__enter__()

    def _extract(self, videos: Iterable[tuple[str, Path]], meter: Meter) -> Iterator[VideoFeatures]:
        return extract_features(videos, self._assignment.settings, engine=self._engine, meter=meter, pool=self._pool)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """A task in, its report out."""
        started = time.monotonic()
        task, meter = task_of(row), Meter()
        try:
            asides = () if self._problem else tuple(self._asides(task, meter))
        except Exception as error:  # noqa: BLE001  (the driver raises it)
            self._problem, asides = _in_words(error, self._node), ()
        ended = time.monotonic()
        idle_seconds, self._idle_since = started - self._idle_since, ended
        return report_row(
            Report(
                token=task.claim.token,
                asides=asides,
                error=self._problem,
                node=self._node,
                frames=meter.frames,
                seconds={**meter.seconds, "task": ended - started},
                idle_seconds=idle_seconds,
            )
        )

    def _asides(self, task: Task, meter: Meter) -> Iterator[Any]:
        """The task's shards, written aside. After a death its videos are tried one by one, to see whose it is."""
        import ray

        settings, strict = self._assignment.settings, self._assignment.strict
        work = f"task {task.claim.token}"
        careful = ray.get(self._deaths.begin.remote(work)) > 0

        def extract(videos: Iterable[tuple[str, Path]]) -> Iterator[VideoFeatures]:
            if careful:
                return self._one_by_one(videos, meter)
            return self._extract(videos, meter)

        for shard in shards_of([task], extract, shard_rows=shard_rows(settings.device), strict=strict, meter=meter):
            yield self._write(shard)  # which `extract_features` counts as writing
        ray.get(self._deaths.end.remote(work))

    def _one_by_one(self, videos: Iterable[tuple[str, Path]], meter: Meter) -> Iterator[VideoFeatures]:
        import ray

        for video_id, path in videos:
            work = f"video {video_id}"
            if ray.get(self._deaths.begin.remote(work)) >= DEATHS - 1:
                yield failed(
                    Outcome(video_id=video_id, status="failed"), f"its worker died {DEATHS} times; quarantined"
                )
            else:
                yield from self._extract([(video_id, path)], meter)
            ray.get(self._deaths.end.remote(work))

    def _write(self, shard: FinishedShard) -> Any:
        outcomes = [video.outcome for video in shard.videos]
        return self._cache.write_aside(shard.claim.token, shard_data(shard.videos), outcomes, self._environment)


def _in_words(error: Exception, node: str) -> str:
    """An expected error's text; of a bug the traceback, with the node where it happened."""
    text = str(error) if isinstance(error, MrrnError) else traceback.format_exc()
    return f"{text} (on node {node})"
