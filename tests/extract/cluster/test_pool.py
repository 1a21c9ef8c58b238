"""The pool of workers with a stand-in for Ray: who gets which task, and what follows when a worker dies."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray", reason="needs mrrn[ray]")

from ray.exceptions import RayActorError

from cache.common.errors import MrrnError
from cache.ledger import Claim, ClaimedVideo, Outcome
from extract.cluster import driver
from extract.cluster.driver import FAILED_STARTS, WorkerPool
from extract.cluster.progress import TaskReport
from extract.cluster.worker import ExtractWorker
from extract.pipeline import VideoFeatures
from extract.settings import CPU_DEFAULTS, ExtractSettings
from extract.shards import ExtractTask


class Actor:
    """An actor whose calls are answered one after the other, when it is told to; a dead one raises."""

    def __init__(self, ray: "FakeRay") -> None:
        self.calls: list[tuple[Any, tuple[ExtractTask, bool] | None]] = []
        self.dead = False
        self.problem = SimpleNamespace(remote=lambda: ray.call(self, None))
        self.extract = SimpleNamespace(remote=lambda task, one_by_one: ray.call(self, (task, one_by_one)))


class FakeRay:
    """What the pool uses of Ray; `answer` decides what each call comes to, None: nothing yet."""

    def __init__(self) -> None:
        self.actors: list[Actor] = []
        self.answer: Callable[[Actor, Any], Any] = lambda actor, call: "" if call is None else TaskReport()
        self.calls: dict[Any, tuple[Actor, Any]] = {}

    def start(self) -> Actor:
        self.actors.append(Actor(self))
        return self.actors[-1]

    def call(self, actor: Actor, what: Any) -> Any:
        reference = object()
        self.calls[reference] = (actor, what)
        return reference

    def wait(self, calls: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        for call in calls:
            if self.calls[call][0].dead or self.answer(*self.calls[call]) is not None:
                return [call], []
        raise AssertionError("the pool waits for ever")

    def get(self, call: Any) -> Any:
        actor, what = self.calls[call]
        answer = self.answer(actor, what)
        if actor.dead or answer is RayActorError:
            actor.dead = True
            raise RayActorError()
        return answer

    def kill(self, actor: Actor) -> None:
        actor.dead = True


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setattr(driver, "ray", fake)
    return fake


def tasks(count: int, videos: int = 2) -> Iterator[ExtractTask]:
    for token in range(count):
        claimed = tuple(ClaimedVideo(f"{token}-{i}", "v.avi") for i in range(videos))
        yield ExtractTask(Claim("me", token, claimed), (Path("/v.avi"),) * videos)


def tokens(reports: Iterator[tuple[ExtractTask, TaskReport]]) -> list[int]:
    return sorted(task.claim.token for task, _ in reports)


def test_each_task_is_done_once_and_no_more_are_taken_than_there_is_room_for(ray):
    taken = 0

    def counted() -> Iterator[ExtractTask]:
        nonlocal taken
        for task in tasks(9):
            taken += 1
            yield task

    pool, most = WorkerPool(2, ray.start), 0
    done = []
    for task, _ in pool.reports(counted()):
        done.append(task.claim.token)
        most = max(most, taken - len(done))
    assert sorted(done) == list(range(9))
    assert most <= 2 * 2
    assert tokens(pool.reports(tasks(3))) == [0, 1, 2], "the pool serves again"


def test_a_worker_that_did_not_start_gets_nothing(ray):
    ray.answer = lambda actor, call: None if actor is ray.actors[1] else "" if call is None else TaskReport()
    assert tokens(WorkerPool(2, ray.start).reports(tasks(4))) == [0, 1, 2, 3]
    assert [what for actor, what in ray.calls.values() if actor is ray.actors[1]] == [None]


def test_tasks_of_a_dead_worker_are_done_by_others_and_the_first_one_video_by_video(ray):
    asked: list[tuple[int, bool]] = []

    def answer(actor: Actor, call: Any) -> Any:
        if call is None:
            return ""
        asked.append((call[0].claim.token, call[1]))
        return RayActorError if actor is ray.actors[0] else TaskReport()

    ray.answer = answer
    assert tokens(WorkerPool(1, ray.start).reports(tasks(2))) == [0, 1]
    assert len(ray.actors) == 2
    assert set(asked) == {(0, False), (0, True), (1, False)}


@pytest.mark.parametrize(("dies", "message"), [("starting", "in a row died while starting"), ("working", "the same 2")])
def test_workers_that_always_die_end_the_extraction(ray, dies, message):
    ray.answer = lambda actor, call: RayActorError if (call is None) == (dies == "starting") else ""
    with pytest.raises(MrrnError, match=message):
        tokens(WorkerPool(1, ray.start).reports(tasks(1)))
    assert len(ray.actors) <= FAILED_STARTS + 1


def test_what_every_worker_would_meet_ends_the_extraction_at_once(ray):
    ray.answer = lambda actor, call: "torch: the cache has 1, this run has 2 (on node n1)"
    with pytest.raises(MrrnError, match="on node n1"):
        tokens(WorkerPool(2, ray.start).reports(tasks(1)))


class SlowDisk(ExtractWorker):
    """Stages a shard only when the video after it is being extracted."""

    def __init__(self, refuses: bool) -> None:
        self._settings, self._node, self._idle_since, self._refuses = ExtractSettings(), "n1", 0.0, refuses
        self._begun, self._stager = Event(), ThreadPoolExecutor(1)

    def _features_of(self, videos, meter):
        for number, (video_id, _) in enumerate(videos):
            if number:
                self._begun.set()
            yield VideoFeatures(
                outcome=Outcome(video_id=video_id, status="done"),
                features={"low": np.empty((1, CPU_DEFAULTS.shard_rows, 1), np.float16)},
                pts_seconds=np.empty(CPU_DEFAULTS.shard_rows),
            )

    def _stage(self, shard):
        assert self._begun.wait(20), "nothing is extracted while a shard is staged"
        if self._refuses:
            raise MrrnError("the disk is full")
        return shard.videos[0].outcome.video_id


def test_a_worker_extracts_while_it_stages():
    (task,) = tasks(1, videos=3)
    report = SlowDisk(refuses=False).extract(task, one_by_one=False)
    assert (report.staged, report.error) == (("0-0", "0-1", "0-2"), "")
    report = SlowDisk(refuses=True).extract(task, one_by_one=False)
    assert (report.staged, report.error) == ((), "the disk is full (on node n1)")
