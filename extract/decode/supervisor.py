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
from typing import Final

import numpy as np

from cache.common.errors import DecodeError
from extract.decode.backends import MissingDecoderError
from extract.decode.process import Charge, Delivery
from extract.decode.types import Cancelled, DecodeSettings, FrameBlock, Result, VideoEnd, Wanted
from extract.decode.wire import Message

START_ATTEMPTS: Final = 5
"""Workers that may fail to start one after the other before the run gives up."""

KILLED_STARTS: Final = 100
"""The same where they are killed from outside, which may stop again."""

OVERSLEPT_SECONDS: Final = 1.0
"""A supervisor that woke up so much too late was stopped, and its workers with it: that time is nobody's fault."""


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
        self._workers: list[Charge] = []
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
        self._enforce(overslept=time.monotonic() - slept_from - timeout)
        self._hand_out()

    def _stop(self) -> None:
        self._running = False

    def _cancel(self) -> None:
        self._wanted.clear()
        for worker in [each for each in self._workers if each.job is not None]:
            self._kill(worker)
        self._results.put(Cancelled())

    # --- listening ---

    def _listen(self, worker: Charge) -> None:
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

    def _hear(self, worker: Charge, message: Message) -> None:
        if "unusable" in message:
            raise MissingDecoderError(message["unusable"])
        if "ready" in message:
            worker.ready = True
            return
        job = worker.job
        if job is None:
            raise ValueError("a message without a video")
        job.begun, job.progress = True, time.monotonic()
        worker.proven, self._failed_starts = True, 0
        if "slot" in message:
            self._pass_on(worker, job.video, worker.delivery(message))
        elif "end" in message:
            self._results.put(VideoEnd(worker.finish(message["end"])))
            if message["end"]["last"] or worker.videos >= self._settings.videos_per_worker:
                self._kill(worker)

    def _pass_on(self, worker: Charge, video: Wanted, delivery: Delivery) -> None:
        """A block of frames to the consumer; its release comes back as a command."""

        def take_back() -> None:
            if worker in self._workers:
                worker.take_back(delivery)

        self._results.put(
            FrameBlock(
                video_id=video.video_id,
                first_frame=delivery.first_frame,
                frames_FHW3=delivery.frames_FHW3,
                pts_seconds_F=delivery.pts_seconds_F,
                on_release=lambda: self._command(take_back),
            )
        )

    # --- ending workers ---

    def _bury(self, worker: Charge) -> None:
        """A worker ended by itself: its video pays for it, if it had begun with it."""
        self._forget(worker)
        death, job = worker.child.reap(), worker.job
        if job is not None and job.begun:
            self._results.put(VideoEnd(job.failed(death.reason)))
        elif job is not None:
            self._wanted.appendleft(job.video)
        if not worker.proven:
            self._note_failed_start(death.reason, KILLED_STARTS if death.from_outside else START_ATTEMPTS)

    def _kill(self, worker: Charge, reason: str = "") -> None:
        """End a worker; with a reason, its video has failed for it."""
        self._forget(worker)
        worker.child.kill()
        if worker.job is not None and reason:
            self._results.put(VideoEnd(worker.job.failed(reason)))
        elif not worker.proven and reason:
            self._note_failed_start(reason, START_ATTEMPTS)

    def _forget(self, worker: Charge) -> None:
        self._workers.remove(worker)
        self._selector.unregister(worker.child.channel)

    def _note_failed_start(self, reason: str, attempts: int) -> None:
        self._failed_starts += 1
        if self._failed_starts >= attempts:
            raise DecodeError(f"decode workers do not start ({self._failed_starts} tries): {reason}")

    # --- time ---

    def _seconds_to_deadline(self) -> float:
        deadline = min((worker.deadline(self._limits)[0] for worker in self._workers), default=np.inf)
        return float(np.clip(deadline - time.monotonic(), 0.0, 3600.0))

    def _enforce(self, overslept: float) -> None:
        """Kill what is past its deadline; time in which this thread could not run either is nobody's fault."""
        now = time.monotonic()
        for worker in list(self._workers):
            if overslept > OVERSLEPT_SECONDS:
                worker.forgive(overslept)
            deadline, guilt = worker.deadline(self._limits)
            if now > deadline:
                self._kill(worker, guilt)

    # --- handing out ---

    def _hand_out(self) -> None:
        """Give waiting videos to idle workers, and start as many workers as there is use for."""
        for worker in self._workers:
            if self._wanted and worker.ready and worker.job is None:
                worker.give(self._wanted.popleft())
        starting = sum(not worker.ready for worker in self._workers)
        while len(self._wanted) > starting and len(self._workers) < self._settings.workers:
            worker = Charge(self._settings)
            self._workers.append(worker)
            self._selector.register(worker.child.channel, selectors.EVENT_READ, worker)
            starting += 1
