"""The supervising thread: owns the decode workers, knows which video each one has, and kills what exceeds a limit.

The consumer's thread sends it commands through one queue and takes results from another; they share nothing else.
"""

import queue
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from cache.common.errors import DecodeError
from extract.decode.backends import MissingDecoderError
from extract.decode.process import MESSAGE_ERRORS, NOT_READING, WorkerProcess
from extract.decode.types import DecodeSettings, FrameBlock, VideoEnd, VideoRequest
from extract.decode.wire import Alive, Begun, Ended, Filled, Message, Ready, Times, Unusable

START_ATTEMPTS: Final = 5
"""Workers that may fail to start, one after the other, before the run ends with an error."""

KILLED_STARTS: Final = 100
"""The same if they are killed from outside, which may stop again."""

LAST_MESSAGES: Final = 10_000
"""The most that is read from a worker that has ended; times of frames are the most that one sends at once."""

OVERSLEPT_SECONDS: Final = 1.0
"""A supervisor that wakes up this much too late was stopped, and its workers too: their deadlines are extended."""


@dataclass(frozen=True)
class Cancelled:
    """Everything that was under way has been given up."""


Result = FrameBlock | VideoEnd | Cancelled | BaseException
"""What the consumer's thread takes from the supervisor's; an exception ends the run."""


class Supervisor:
    """Runs in a thread of its own; the consumer's thread calls `add`, `cancel`, `stop` and a block's `release`."""

    def __init__(self, settings: DecodeSettings, results: "queue.SimpleQueue[Result]") -> None:
        self._settings, self._limits, self._results = settings, settings.limits, results
        self._commands: deque[Callable[[], None]] = deque()
        self._wake_reader, self._wake_writer = socket.socketpair()
        for end in (self._wake_reader, self._wake_writer):
            end.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_reader, selectors.EVENT_READ)
        self._queued: deque[VideoRequest] = deque()
        self._workers: list[WorkerProcess] = []
        self._failed_starts = 0
        self._running = True

    # --- the consumer's side ---

    def add(self, video: VideoRequest) -> None:
        """Decode one more video."""
        self._command(lambda: self._queued.append(video))

    def cancel(self) -> None:
        """Give up what is under way; no result of it comes after the Cancelled result."""
        self._command(self._cancel)

    def stop(self) -> None:
        """End the workers and the thread."""
        self._command(self._stop)

    def _command(self, action: Callable[[], None]) -> None:
        self._commands.append(action)
        # Full: it wakes up anyway. Closed: the pool has ended, and a block released after that frees nothing.
        with suppress(OSError):
            self._wake_writer.send(b"!")

    # --- the supervisor's side ---

    def run(self) -> None:
        """The thread: wait for messages and commands, enforce deadlines, hand out videos, until `stop`."""
        try:
            while self._running:
                self._step()
        except BaseException as error:  # noqa: BLE001 (the consumer's thread raises it)
            self._results.put(error)
        finally:
            for worker in list(self._workers):
                self._kill(worker)
            self._selector.close()
            self._wake_reader.close()
            self._wake_writer.close()

    def _step(self) -> None:
        slept_from = time.monotonic()
        deadline = min((worker.deadline(self._limits)[0] for worker in self._workers), default=np.inf)
        timeout = float(np.clip(deadline - slept_from, 0.0, 3600.0))
        for key, _ in self._selector.select(timeout):
            if key.data is None:
                self._wake_reader.recv(4096)
            else:
                self._listen(key.data, ended=key.fd == key.data.descriptors[1])
        while self._commands:
            self._commands.popleft()()
        self._enforce_deadlines(overslept=time.monotonic() - slept_from - timeout)
        self._hand_out()

    def _stop(self) -> None:
        self._running = False

    def _cancel(self) -> None:
        self._queued.clear()
        for worker in [each for each in self._workers if each.current is not None]:
            self._kill(worker)
        self._results.put(Cancelled())

    # --- listening ---

    def _listen(self, worker: WorkerProcess, ended: bool) -> None:
        """Read a worker's messages. One that sends what no worker sends is killed, like one that hangs.

        `ended`: its process is gone, so what it still sent is the last; children of it may have the channel.
        """
        try:
            # A bounded number: a worker that never stops sending must not keep the others from being heard.
            for _ in range(LAST_MESSAGES if ended else 100):
                if worker not in self._workers:
                    return
                message = worker.receive()
                if message is None:
                    break
                self._handle(worker, message)
            else:
                if not ended:
                    return
        except BlockingIOError:
            if not ended:
                return
        except MESSAGE_ERRORS as error:
            self._kill(worker, f"decoder sent a message that makes no sense ({error!r:.200})")
            return
        self._remove_dead_worker(worker)

    def _handle(self, worker: WorkerProcess, message: Message) -> None:
        match message:
            case Unusable() if not worker.ready:
                raise MissingDecoderError(message.reason)
            case Ready() if not worker.ready:
                worker.ready = True
            case Begun() | Alive() | Filled() | Times() | Ended() if worker.ready:
                worker.heard(message)
                self._failed_starts = 0
                self._take(worker, message)
            case _:
                raise ValueError(f"{message!r} at this time")

    def _take(self, worker: WorkerProcess, message: Message) -> None:
        """What a message about a worker's video brings."""
        match message:
            case Filled():
                free = partial(self._free_slot, worker, message.slot)
                self._results.put(worker.block(message, on_release=partial(self._command, free)))
            case Times():
                worker.add_times(message)
            case Ended():
                self._results.put(worker.finish(message))
                if message.last or worker.videos >= self._settings.videos_per_worker:
                    self._kill(worker)

    def _free_slot(self, worker: WorkerProcess, slot: int) -> None:
        """The consumer released a block, maybe of a worker that is gone."""
        if worker in self._workers:
            try:
                worker.free_slot(slot)
            except BlockingIOError:
                self._kill(worker, NOT_READING)

    # --- ending workers ---

    def _remove_dead_worker(self, worker: WorkerProcess) -> None:
        """A worker ended by itself."""
        self._forget(worker)
        reason, from_outside = worker.reap()
        self._settle(worker, reason, KILLED_STARTS if from_outside else START_ATTEMPTS)

    def _kill(self, worker: WorkerProcess, reason: str = "") -> None:
        """End a worker; without a reason the video that it has is given up, too."""
        self._forget(worker)
        worker.kill()
        if reason:
            self._settle(worker, reason, START_ATTEMPTS)

    def _settle(self, worker: WorkerProcess, reason: str, attempts: int) -> None:
        """After a worker's end: its video has failed if it had begun, and is queued again otherwise."""
        if worker.current is not None and worker.current.begun:
            self._results.put(VideoEnd(worker.current.failed(reason)))
        elif worker.current is not None:
            self._queued.appendleft(worker.current.video)
        if not worker.proven:
            self._failed_starts += 1
            if self._failed_starts >= attempts:
                raise DecodeError(f"decode workers do not start ({self._failed_starts} tries): {reason}")

    def _forget(self, worker: WorkerProcess) -> None:
        self._workers.remove(worker)
        for descriptor in worker.descriptors:
            self._selector.unregister(descriptor)

    # --- time ---

    def _enforce_deadlines(self, overslept: float) -> None:
        """Kill workers past their deadlines, which are extended by the time in which this thread was stopped too."""
        now = time.monotonic()
        for worker in list(self._workers):
            if overslept > OVERSLEPT_SECONDS:
                worker.extend_deadlines(overslept)
            deadline, reason = worker.deadline(self._limits)
            if now > deadline:
                self._kill(worker, reason)

    # --- handing out ---

    def _hand_out(self) -> None:
        """Give waiting videos to idle workers, and start as many workers as there is use for."""
        for worker in list(self._workers):
            if self._queued and worker.ready and worker.current is None:
                try:
                    worker.give(self._queued.popleft())
                except BlockingIOError:
                    self._kill(worker, NOT_READING)
        starting = sum(not worker.ready for worker in self._workers)
        while len(self._queued) > starting and len(self._workers) < self._settings.workers:
            worker = WorkerProcess(self._settings)
            self._workers.append(worker)
            for descriptor in worker.descriptors:
                self._selector.register(descriptor, selectors.EVENT_READ, worker)
            starting += 1
