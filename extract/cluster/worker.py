"""A worker: a Ray actor with the network on its device, decoders beside it, and access to the cache's shards.

Frames stay on the machine that decodes them, in memory shared with its decoders: they are over a hundred times larger
than the features that leave it.
"""

import socket
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import ray

from cache.commit import StagedShard
from cache.common.errors import MrrnError
from cache.fingerprint import check_fingerprint
from cache.ledger import Outcome
from cache.store import FeatureCache
from extract.cluster.progress import TaskReport
from extract.decode import DecodePool
from extract.fingerprint import fingerprint
from extract.meter import Meter
from extract.network.engine import open_engine
from extract.network.weights import Weights
from extract.pipeline import VideoFeatures, decode_settings, extract_features, failed
from extract.settings import ExtractSettings, device_defaults
from extract.shards import ExtractTask, FinishedShard, shard_data, shards_of

DEATHS: Final = 3
"""Workers that die with a video before it is given up: the first with other videos of its task, the others with it
alone."""

DIED: Final = f"its worker died {DEATHS} times; quarantined"
"""Reason recorded for a video that was given up."""


@dataclass(frozen=True)
class WorkerSettings:
    """What all workers of an extraction have in common."""

    open_cache: Callable[[], FeatureCache]
    """Opens the cache where a worker is: its folder, which all machines see, or the object store it is in."""
    settings: ExtractSettings
    allow_drift: bool


class VideoDeaths:
    """A Ray actor beside the driver: counts how often a worker died while it tried a video alone."""

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()

    def begin(self, video_id: str) -> int:
        """How many workers died with the video so far; one more from now on, unless `end` is called."""
        self._begun[video_id] += 1
        return self._begun[video_id] - 1

    def end(self, video_id: str) -> None:
        """The worker is through with the video and alive."""
        del self._begun[video_id]


class ExtractWorker:
    """The actor: takes one task after the other, in a process that has a device for itself."""

    def __init__(self, common: WorkerSettings, weights: Weights, deaths: Any) -> None:
        """`deaths` is the handle of a `VideoDeaths` actor."""
        self._settings, self._deaths = common.settings, deaths
        # Beside the extraction of what comes next. One thread for all tasks: what writes shards ends with its thread.
        self._stager = ThreadPoolExecutor(1, thread_name_prefix="stage")
        # A host may have several nodes, and containers on many machines the same host name.
        self._node = f"{socket.gethostname()}-{ray.get_runtime_context().get_node_id()[:6]}"
        self._problem = ""
        try:
            self._cache = common.open_cache()
            ours = fingerprint(self._settings, weights_text=weights.text, weights_sha256=weights.sha256)
            where = f"the cache {self._cache.path}"
            check_fingerprint(self._cache.fingerprint, ours, allow_drift=common.allow_drift, where=where)
            self._environment = ours.environment
            self._open(weights)
        except Exception as error:  # noqa: BLE001  (the driver raises it)
            self._problem = self._text_of(error)
        self._idle_since = time.monotonic()

    def problem(self) -> str:
        """Why this worker cannot work, as a text for the user; empty if it can. Answers once it has started."""
        return self._problem

    def extract(self, task: ExtractTask, *, one_by_one: bool) -> TaskReport:
        """Extract the videos of a task and stage their shards.

        `one_by_one`: a worker died with this task, so try each video alone, to see which one it was.
        """
        started = time.monotonic()
        idle_seconds, meter = started - self._idle_since, Meter()
        features_of = partial(self._each_alone if one_by_one else self._features_of, meter=meter)
        rows, strict = device_defaults(self._settings.device).shard_rows, self._settings.strict
        try:
            shards = shards_of([task], features_of, shard_rows=rows, strict=strict, meter=meter)
            staged, problem = tuple(self._stager.map(self._stage, shards)), ""
        except Exception as error:  # noqa: BLE001  (the driver raises it)
            staged, problem = (), self._text_of(error)
        self._idle_since = time.monotonic()
        return TaskReport(
            staged=staged,
            error=problem,
            node=self._node,
            frames=meter.frames,
            seconds={**meter.seconds, "task": self._idle_since - started},
            idle_seconds=idle_seconds,
        )

    def _open(self, weights: Weights) -> None:
        """The device and the decoders, for as long as this process lives."""
        self._engine = open_engine(self._settings, weights)
        self._pool = DecodePool(decode_settings(self._settings)).__enter__()

    def _features_of(self, videos: Iterable[tuple[str, Path]], meter: Meter) -> Iterator[VideoFeatures]:
        return extract_features(videos, self._settings, engine=self._engine, meter=meter, pool=self._pool)

    def _each_alone(self, videos: Iterable[tuple[str, Path]], meter: Meter) -> Iterator[VideoFeatures]:
        for video_id, path in videos:
            if ray.get(self._deaths.begin.remote(video_id)) >= DEATHS - 1:
                yield failed(Outcome(video_id=video_id, status="failed"), DIED)
            else:
                yield from self._features_of([(video_id, path)], meter)
            ray.get(self._deaths.end.remote(video_id))

    def _stage(self, shard: FinishedShard) -> StagedShard:
        return self._cache.stage(shard.claim.token, shard_data(shard.videos), shard.outcomes(), self._environment)

    def _text_of(self, error: Exception) -> str:
        """The text of an expected error; of a bug the traceback; with the node where it happened."""
        text = str(error) if isinstance(error, MrrnError) else traceback.format_exc()
        return f"{text} (on node {self._node})"
