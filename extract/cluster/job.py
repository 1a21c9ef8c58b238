"""The driver: claims videos, hands them to Ray Data, commits what comes back. It alone touches the ledger."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.data.exceptions import ExecutionTimeoutError, SystemException
from ray.exceptions import RayError
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cache.common.console import progress
from cache.common.errors import MrrnError
from cache.fingerprint import Fingerprint
from cache.store import FeatureCache
from extract.claims import Work
from extract.cluster.connect import Slots
from extract.cluster.messages import Report, report_of, task_row
from extract.cluster.source import QueueSource
from extract.cluster.tally import Tally
from extract.cluster.worker import Assignment, Deaths, Extractor
from extract.meter import ticking
from extract.network.weights import Weights

AHEAD: Final = 3
"""Tasks for each worker that are under way: one worked on, one waiting there, one on its way. All that the driver's
memory holds at a time, however many videos there are."""

QUARANTINED_AT_MOST: Final = 10
"""Videos that may kill their workers before it looks as if the workers die of something else."""


class Job:
    """One extraction on a cluster."""

    def __init__(self, cache: FeatureCache, work: Work, place: Slots, worker: type[Extractor]) -> None:
        self._cache, self._work, self._place, self._worker = cache, work, place, worker
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._here: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": here}
        self._queue = Queue(actor_options=self._here)
        self._credits = threading.Semaphore(AHEAD * place.workers)
        self._feeding_failed: BaseException | None = None
        self._over = threading.Event()
        self.tally = Tally()

    def run(self, assignment: Assignment, weights: Weights) -> None:
        """Extract until no video is left. MrrnError where workers meet what all of them would meet."""
        feeder = threading.Thread(target=self._feed, name="claims", daemon=True)
        feeder.start()
        try:
            for row in self._rows(assignment, weights):
                self._take(report_of(row))
            self._work.drain()
        except (RayError, SystemException, ExecutionTimeoutError) as error:
            raise MrrnError(f"Ray gave up: {error}. What was committed is safe; the same command goes on") from error
        finally:
            self._over.set()
        if self._feeding_failed is not None:
            raise self._feeding_failed
        self._cache.recover()

    def _rows(self, assignment: Assignment, weights: Weights) -> Iterator[dict[str, Any]]:
        deaths = ray.remote(Deaths).options(**self._here).remote()
        pool = ActorPoolStrategy(
            min_size=1, max_size=self._place.workers, initial_size=self._place.workers, max_tasks_in_flight_per_actor=2
        )
        configure(DataContext.get_current())
        tasks = ray.data.read_datasource(QueueSource(self._queue, deaths), override_num_blocks=1, num_cpus=0)
        reports = tasks.map(
            self._worker,
            fn_constructor_args=(assignment, ray.put(weights), deaths),
            compute=pool,
            num_cpus=self._place.num_cpus,
            num_gpus=self._place.num_gpus or None,
        )
        # Without prefetching, which holds a report back until the next one comes: the last ones never would.
        for batch in reports.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from batch.to_pylist()

    def _feed(self) -> None:
        """Claim and hand out as reports come back; ends the job once nobody has anything left."""
        try:
            while not self._over.is_set() and (claim := self._work.wait_for_claim()):
                for task in self._work.tasks(claim):
                    self._credits.acquire()
                    self._queue.put(task_row(task))
                self._wait_for_all()
        except BaseException as error:  # noqa: BLE001  (raised again by `run`, in the driver's main thread)
            if not self._over.is_set():
                self._feeding_failed = error
        finally:
            if not self._over.is_set():
                with suppress(RayError):
                    self._queue.put(None)

    def _wait_for_all(self) -> None:
        """Until everything handed out came back and is committed."""
        total = AHEAD * self._place.workers
        for _ in range(total):
            self._credits.acquire()
        self._credits.release(total)

    def _take(self, report: Report) -> None:
        if report.error:
            raise MrrnError(report.error)
        claim = self._work.held(report.token)
        for number, aside in enumerate(report.asides, 1):
            commit = partial(self._cache.commit_staged, claim, aside)
            self._work.submit(commit, claim, last=number == len(report.asides))
        self.tally.add(report)
        self._credits.release()
        self._check_health()

    def _check_health(self) -> None:
        killed = sum(count for reason, count in self.tally.failures.items() if reason.startswith("its worker died"))
        if killed > max(QUARANTINED_AT_MOST, self.tally.finished // 2):
            raise MrrnError(
                f"{killed} of {self.tally.finished} videos killed their workers: more likely these die of something "
                "else, such as too little memory. Look at Ray's dashboard; --retry-failed tries these videos again"
            )


def configure(context: DataContext) -> None:
    """Ray Data for tasks that are few bytes and much work: a block for each, nothing dropped, nothing printed."""
    context.target_max_block_size = 1
    context.max_errored_blocks = 0
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def extract_on(
    place: Slots,
    cache: FeatureCache,
    paths: Mapping[str, Path],
    made_with: Fingerprint,
    assignment: Assignment,
    weights: Weights,
    worker: type[Extractor] = Extractor,
) -> Tally:
    """Extract what is pending in `cache` on the workers of `place`; what was counted on the way."""
    pending = cache.ledger.counts()["pending"]
    with (
        progress("extract", pending, "videos") as bar,
        Work(cache, paths, made_with, device=assignment.settings.device, say=click.echo) as work,
    ):
        job = Job(cache, work, place, worker)
        with ticking(1.0, lambda: bar.update(job.tally.finished, job.tally.text())):
            job.run(assignment, weights)
    return job.tally
