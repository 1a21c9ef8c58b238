"""The supervising thread: owns the decode workers, knows which video each one has, and kills what exceeds a limit.

The consumer's thread talks to it through a queue of commands and takes from a queue of results; it owns nothing else.
"""

import queue
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from cache.errors import DecodeError
from cache.ledger import Outcome
from extract.blocks import Cancelled, DecodeSettings, FrameBlock, Result, VideoEnd, Wanted
from extract.channel import Message
from extract.child import Child
from extract.decode import BLOCK_BYTES
from extract.decoders import MissingDecoderError

START_SECONDS: Final = 120.0
"""For a worker to start: longer than any import takes."""

START_ATTEMPTS: Final = 5
"""Workers that may fail to start one after the other before the run gives up."""

KILLED_STARTS: Final = 100
"""The same where they are killed from outside, which may stop again."""

OVERSLEPT_SECONDS: Final = 1.0
"""A supervisor that woke up so much too late was stopped, and its workers with it: that time is nobody's fault."""


@dataclass
class Job:
    """The video that a worker has."""

    video: Wanted
    started: float
    """Monotonic seconds, as all times here."""
    progress: float
    """When it last was known to go on."""
    waited: float = 0.0
    """Seconds in which it could not go on because the consumer held all its blocks."""
    begun: bool = False
    """Whether the worker said that it has it."""


class Worker:
    """A child process and what the supervisor knows of it."""

    def __init__(self, settings: DecodeSettings) -> None:
        self.child = Child(settings.ring, settings.for_worker())
        self.ready = False
        self.started = time.monotonic()
        self.job: Job | None = None
        self.videos = 0
        self.free = set(range(settings.blocks_ahead))
        self.full_since: float | None = None


class Supervisor:
    """Runs in a thread of its own; `want`, `cancel`, `stop` and a block's `release` are for the consumer's."""

    def __init__(self, settings: DecodeSettings, results: "queue.SimpleQueue[Result]") -> None:
        self._settings, self._limits, self._results = settings, settings.limits, results
        self._commands: deque[Callable[[], None]] = deque()
        self._wake_reader, self._wake_writer = socket.socketpair()
        for end in (self._wake_reader, self._wake_writer):
            end.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_reader, selectors.EVENT_READ)
        self._wanted: deque[Wanted] = deque()
        self._workers: list[Worker] = []
        self._failed_starts = 0
        self._running = True

    # --- the consumer's side ---

    def want(self, video: Wanted) -> None:
        """Decode one more video."""
        self._command(lambda: self._wanted.append(video))

    def cancel(self) -> None:
        """Drop what is under way; a Cancelled result follows the last one of it."""
        self._command(self._cancel)

    def stop(self) -> None:
        """End the workers and the thread."""
        self._command(self._stop)

    def _command(self, action: Callable[[], None]) -> None:
        self._commands.append(action)
        # Full: it wakes up anyway. Closed: the pool has ended, and a block released after that has nowhere to go.
        with suppress(OSError):
            self._wake_writer.send(b"!")

    # --- the supervisor's side ---

    def run(self) -> None:
        """The thread's life: wait, listen, judge, hand out."""
        try:
            while self._running:
                self._step()
        except DecodeError as error:
            self._results.put(error)
        except BaseException as error:
            self._results.put(error)
            raise
        finally:
            for worker in list(self._workers):
                self._kill(worker)
            self._selector.close()
            self._wake_reader.close()
            self._wake_writer.close()

    def _step(self) -> None:
        slept_from, timeout = time.monotonic(), self._seconds_to_deadline()
        for key, _ in self._selector.select(timeout):
            if key.data is None:
                self._wake_reader.recv(4096)
            else:
                self._listen(key.data)
        while self._commands:
            self._commands.popleft()()
        self._forgive(time.monotonic() - slept_from - timeout)
        self._enforce()
        self._hand_out()

    def _stop(self) -> None:
        self._running = False

    def _cancel(self) -> None:
        self._wanted.clear()
        for worker in [each for each in self._workers if each.job is not None]:
            self._kill(worker)
        self._results.put(Cancelled())

    # --- listening ---

    def _listen(self, worker: Worker) -> None:
        """Take what a worker said; one that says what no worker says is killed like one that hangs."""
        try:
            # Not for ever: a worker that never stops talking must not keep the others from being heard.
            for _ in range(100):
                message = worker.child.channel.receive(wait=False)
                if message is None:
                    self._bury(worker)
                    return
                self._hear(worker, message)
                if worker not in self._workers:
                    return
        except BlockingIOError:
            return
        except (ValueError, TypeError, KeyError, IndexError) as error:
            self._kill(worker, f"decoder sent a message that makes no sense ({error!r})")

    def _hear(self, worker: Worker, message: Message) -> None:
        if "unusable" in message:
            raise MissingDecoderError(message["unusable"])
        if "ready" in message:
            worker.ready, self._failed_starts = True, 0
            return
        job = worker.job
        if job is None:
            raise ValueError("a message without a video")
        job.begun, job.progress = True, time.monotonic()
        if "slot" in message:
            self._pass_on(worker, job, message)
        elif "end" in message:
            self._finish(worker, job, message["end"])

    def _pass_on(self, worker: Worker, job: Job, message: Message) -> None:
        """A block of frames."""
        slot, (frames, height, width) = message["slot"], message["shape"]
        size = frames * height * width * 3
        if slot not in worker.free or not 0 < size <= worker.child.ring.shape.slot_bytes:
            raise ValueError(f"slot {slot}, shape {frames, height, width}")
        pts_seconds_F = np.array(message["pts"], np.float64)
        if pts_seconds_F.shape != (frames,):
            raise ValueError(f"{frames} frames, times {pts_seconds_F.shape}")
        worker.free.remove(slot)
        if not worker.free:
            worker.full_since = time.monotonic()
        block = FrameBlock(
            video_id=job.video.video_id,
            first_frame=int(message["first"]),
            frames_FHW3=worker.child.ring.slot(slot)[:size].reshape(frames, height, width, 3),
            pts_seconds_F=pts_seconds_F,
            on_release=lambda: self._command(lambda: self._take_back(worker, slot, size)),
        )
        self._results.put(block)

    def _take_back(self, worker: Worker, slot: int, size: int) -> None:
        """A block was released: its slot is free again, if its worker still lives."""
        if worker not in self._workers:
            return
        if size > BLOCK_BYTES:
            worker.child.ring.forget(slot)
        worker.free.add(slot)
        if worker.full_since is not None:
            now = time.monotonic()
            if worker.job is not None:
                worker.job.waited += now - worker.full_since
                worker.job.progress = now
            worker.full_since = None
        worker.child.channel.send({"free": slot})

    def _finish(self, worker: Worker, job: Job, end: dict[str, Any]) -> None:
        """A video's end, as its worker tells it."""
        if end["status"] not in ("done", "suspect", "failed"):
            raise ValueError(f"status {end['status']!r}")
        declared = end["declared"]
        outcome = Outcome(
            video_id=job.video.video_id,
            status=end["status"],
            reason=str(end["reason"]),
            num_frames=int(end["frames"]) if end["status"] != "failed" else 0,
            declared_frames=None if declared is None else int(declared),
            decoder_errors=int(end["errors"]),
            seconds=float(end["seconds"]),
        )
        worker.job = None
        worker.videos += 1
        self._results.put(VideoEnd(outcome))
        if end["last"] or worker.videos >= self._settings.videos_per_worker:
            self._kill(worker)

    # --- ending workers ---

    def _bury(self, worker: Worker) -> None:
        """A worker ended by itself: its video pays for it, if it had begun with it."""
        self._forget(worker)
        death, job = worker.child.reap(), worker.job
        if not worker.ready:
            self._note_failed_start(death.reason, KILLED_STARTS if death.from_outside else START_ATTEMPTS)
        elif job is None:
            return
        elif job.begun:
            self._blame(job, death.reason)
        else:
            self._wanted.appendleft(job.video)

    def _kill(self, worker: Worker, reason: str = "") -> None:
        """End a worker; with a reason, its video has failed for it."""
        self._forget(worker)
        worker.child.kill()
        if not worker.ready and reason:
            self._note_failed_start(reason, START_ATTEMPTS)
        elif worker.job is not None and reason:
            self._blame(worker.job, reason)

    def _forget(self, worker: Worker) -> None:
        self._workers.remove(worker)
        self._selector.unregister(worker.child.channel)

    def _blame(self, job: Job, reason: str) -> None:
        seconds = time.monotonic() - job.started - job.waited
        outcome = Outcome(video_id=job.video.video_id, status="failed", reason=reason, seconds=seconds)
        self._results.put(VideoEnd(outcome))

    def _note_failed_start(self, reason: str, attempts: int) -> None:
        self._failed_starts += 1
        if self._failed_starts >= attempts:
            raise DecodeError(f"decode workers do not start ({self._failed_starts} tries): {reason}")

    # --- time ---

    def _seconds_to_deadline(self) -> float:
        deadline = min((self._deadline(worker)[0] for worker in self._workers), default=np.inf)
        return float(np.clip(deadline - time.monotonic(), 0.0, 3600.0))

    def _deadline(self, worker: Worker) -> tuple[float, str]:
        """When the worker must have gone on, and what it is guilty of otherwise."""
        job, limits = worker.job, self._limits
        if not worker.ready:
            return worker.started + START_SECONDS, f"not ready after {START_SECONDS:g} s"
        if job is None or not worker.free:
            return np.inf, ""
        stall = (job.progress + limits.stall_seconds, f"no new frame for {limits.stall_seconds:g} s")
        whole = (job.started + job.waited + limits.video_seconds, f"took longer than {limits.video_seconds:g} s")
        return min(stall, whole)

    def _enforce(self) -> None:
        now = time.monotonic()
        for worker in list(self._workers):
            deadline, guilt = self._deadline(worker)
            if now > deadline:
                self._kill(worker, guilt)

    def _forgive(self, overslept: float) -> None:
        """The machine or this process stood still: move every deadline."""
        if overslept > OVERSLEPT_SECONDS:
            for job in [worker.job for worker in self._workers if worker.job is not None]:
                job.progress += overslept
                job.waited += overslept

    # --- handing out ---

    def _hand_out(self) -> None:
        """Give waiting videos to idle workers, and start as many workers as there is use for."""
        for worker in self._workers:
            if self._wanted and worker.ready and worker.job is None:
                self._give(worker, self._wanted.popleft())
        starting = sum(not worker.ready for worker in self._workers)
        while len(self._wanted) > starting and len(self._workers) < self._settings.workers:
            worker = Worker(self._settings)
            self._workers.append(worker)
            self._selector.register(worker.child.channel, selectors.EVENT_READ, worker)
            starting += 1

    def _give(self, worker: Worker, video: Wanted) -> None:
        now = time.monotonic()
        worker.job = Job(video, started=now, progress=now)
        if worker.full_since is not None:
            worker.full_since = now
        worker.child.channel.send({"path": str(video.path)})
