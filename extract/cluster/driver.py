"""The driver: claims videos, hands them to the workers, commits what comes back. It alone touches the ledger."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cache.common.console import say
from cache.common.errors import MrrnError
from cache.common.progress import progress
from cache.fingerprint import Fingerprint
from cache.store import FeatureCache
from extract import plan
from extract.claims import ClaimQueue
from extract.cluster.connect import WorkerSlots, connected, decide_on_worker, find_device_kind, find_slots
from extract.cluster.progress import ClusterProgress, TaskReport, kind_of
from extract.cluster.worker import DEATHS, DIED, ExtractWorker, VideoDeaths, WorkerSettings
from extract.meter import Forecast, ticking
from extract.network.weights import Weights, load_weights
from extract.plan import Extraction
from extract.settings import ExtractSettings
from extract.shards import ExtractTask

TASKS_PER_WORKER: Final = 2
"""Tasks that a worker has at a time, one worked on and one waiting. So the driver's memory does not grow with the
number of videos."""

FAILED_STARTS: Final = 10
"""Workers in a row that may die while they start, or twice as many as there are workers, before the driver gives up."""

QUARANTINED: Final = 10
"""Videos that may kill their workers, or half of all videos, before the driver takes something else for the cause."""

POLL_SECONDS: Final = 1.0


def extract(extraction: Extraction) -> int:
    """Extract on a Ray cluster until no video is left, neither here nor with other extractors.

    Returns how many frames this took. MrrnError if it cannot be.
    """
    weights = load_weights(extraction.settings.weights, extraction.settings.backbone)
    with connected():
        device = find_device_kind(extraction.settings.device)
        slots = find_slots(device, workers=extraction.options.workers, jobs=extraction.settings.jobs)
        settings, made_with = decide_on_worker(extraction.settings, device, slots, weights)
        with plan.open_cache(extraction, settings, made_with) as cache:
            if not cache.ledger.counts()["pending"]:
                return 0
            where = f"{slots.workers} workers ({device}), {slots.num_cpus} cores each,"
            forecast = plan.announce(extraction, cache, settings, weights, where)
            done = extract_pending(
                slots,
                cache,
                extraction.video_paths,
                settings,
                weights,
                made_with,
                allow_drift=extraction.options.allow_drift,
                forecast=forecast,
            )
            say(done.summary())
            return done.meter.frames


def extract_pending(
    slots: WorkerSlots,
    cache: FeatureCache,
    paths: Mapping[str, Path],
    settings: ExtractSettings,
    weights: Weights,
    made_with: Fingerprint,
    *,
    allow_drift: bool = False,
    worker: type[ExtractWorker] = ExtractWorker,
    forecast: Forecast | None = None,
) -> ClusterProgress:
    """Extract the pending videos of `cache`; returns what was counted on the way."""
    # Workers have other working folders, so the path is absolute.
    reopen, arguments = FeatureCache.open(cache.path.absolute()).__reduce__()
    common = WorkerSettings(partial(reopen, *arguments), settings, allow_drift)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    deaths = ray.remote(VideoDeaths).options(num_cpus=0, scheduling_strategy=here).remote()
    actor = ray.remote(worker).options(num_cpus=slots.num_cpus, num_gpus=slots.num_gpus or None, max_restarts=0)
    stored_weights = ray.put(weights)
    pending = cache.ledger.counts()["pending"]
    counts = ClusterProgress(forecast)
    with (
        progress("extract", pending, "videos", frames=counts.meter.amounts if forecast else None) as bar,
        ClaimQueue(cache, paths, made_with, device=settings.device) as claims,
        ticking(1.0, lambda: bar.update(counts.meter.finished, counts.text())),
    ):
        try:
            pool = WorkerPool(slots.workers, lambda: actor.remote(common, stored_weights, deaths))
            while claim := claims.wait_for_claim():
                for task, report in pool.reports(claims.tasks(claim)):
                    if report.error:
                        raise MrrnError(report.error)
                    for number, staged in enumerate(report.staged, 1):
                        commit = partial(cache.commit_staged, task.claim, staged)
                        claims.submit(commit, task.claim, last=number == len(report.staged))
                    counts.add(report)
                    _check_health(counts)
                claims.drain()
        except RayError as error:
            raise MrrnError(f"Ray gave up: {error}. What was committed is safe; the same command goes on") from error
        cache.recover()
    return counts


def _check_health(counts: ClusterProgress) -> None:
    killed = counts.failures[kind_of(DIED)]
    if killed > max(QUARANTINED, counts.meter.finished // 2):
        raise MrrnError(
            f"{killed} of {counts.meter.finished} videos killed their workers: more likely these die of something "
            "else, such as too little memory. Look at Ray's dashboard; --retry-failed tries these videos again"
        )


@dataclass(eq=False)
class PooledWorker:
    """A worker, and what it was called for."""

    actor: Any
    start: Any
    """The call that answers once the worker has started."""
    started: bool = False
    tasks: dict[Any, ExtractTask] = field(default_factory=dict)
    """By call, the oldest first: the one that is worked on."""


class WorkerPool:
    """The workers. One that dies is replaced, and its tasks are given to others; tasks only go to those that started.

    Where the cluster has no room for a worker, now or after a node went, Ray starts it when there is room.
    """

    def __init__(self, size: int, start_actor: Callable[[], Any]) -> None:
        self._size, self._start_actor = size, start_actor
        self._waiting: deque[ExtractTask] = deque()
        self._deaths: Counter[int] = Counter()
        """Workers that died with a task, by its token."""
        self._failed_starts = 0
        self._workers: list[PooledWorker] = []
        self._calls: dict[Any, PooledWorker] = {}
        """Who answers what has not been answered yet."""
        for _ in range(size):
            self._start()

    def reports(self, tasks: Iterable[ExtractTask]) -> Iterator[tuple[ExtractTask, TaskReport]]:
        """Have `tasks` done; yields each one with its report, as they come. Takes tasks only when a worker has room.

        MrrnError if workers meet what all of them would meet, or keep dying.
        """
        coming: Iterator[ExtractTask] | None = iter(tasks)
        while coming or self._waiting or any(worker.tasks for worker in self._workers):
            while coming and not self._waiting and self._free_worker():
                if task := next(coming, None):
                    self._waiting.append(task)
                    self._assign()
                else:
                    coming = None
            yield from self._answers()

    def _answers(self) -> Iterator[tuple[ExtractTask, TaskReport]]:
        """Wait up to a second for an answer of a worker, and act on it."""
        answered, _ = ray.wait(list(self._calls), timeout=POLL_SECONDS)
        for call in answered:
            worker = self._calls.pop(call)
            try:
                answer = ray.get(call)
            except RayTaskError:
                raise  # a bug of ours, which the next worker would meet too
            except RayError as error:
                self._replace(worker, error)
            else:
                if call == worker.start:
                    if answer:
                        raise MrrnError(answer)
                    worker.started, self._failed_starts = True, 0
                else:
                    yield worker.tasks.pop(call), answer
        self._assign()

    def _free_worker(self) -> PooledWorker | None:
        started = [worker for worker in self._workers if worker.started and len(worker.tasks) < TASKS_PER_WORKER]
        return min(started, key=lambda worker: len(worker.tasks), default=None)

    def _assign(self) -> None:
        while self._waiting and (worker := self._free_worker()):
            task = self._waiting.popleft()
            call = worker.actor.extract.remote(task, one_by_one=self._deaths[task.claim.token] > 0)
            worker.tasks[call] = task
            self._calls[call] = worker

    def _start(self) -> None:
        actor = self._start_actor()
        worker = PooledWorker(actor, start=actor.problem.remote())
        self._workers.append(worker)
        self._calls[worker.start] = worker

    def _replace(self, worker: PooledWorker, error: RayError) -> None:
        """Start another worker for one that is dead or out of reach, and take its tasks back."""
        for call in (worker.start, *worker.tasks):
            self._calls.pop(call, None)
        with suppress(RayError):
            ray.kill(worker.actor)
        tasks = list(worker.tasks.values())
        if tasks:
            token, videos = tasks[0].claim.token, tasks[0].claim.videos
            self._deaths[token] += 1
            if self._deaths[token] > DEATHS * (len(videos) + 1):
                raise MrrnError(
                    f"{self._deaths[token]} workers died with the same {len(videos)} videos, the first one "
                    f"{videos[0].id!r}: look at Ray's dashboard for what they die of, such as too little memory"
                )
        elif not worker.started:
            self._failed_starts += 1
            if self._failed_starts > max(FAILED_STARTS, 2 * self._size):
                raise MrrnError(f"{self._failed_starts} workers in a row died while starting; the last one: {error}")
        self._waiting.extendleft(reversed(tasks))
        self._workers.remove(worker)
        self._start()
