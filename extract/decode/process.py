"""The supervisor's side of one decode worker: start it, talk to it, end it, and say how it died.

One decode worker as its supervisor sees it: its video, its slots, its clock, and what its messages mean.

Times are monotonic seconds.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cache.ledger import Outcome
from extract.decode.types import BLOCK_BYTES, DecodeSettings, Limits, Wanted
from extract.decode.wire import Channel, Message, Ring, RingShape

_START: Final = "from extract.decode.worker import main; main()"
_REAP_SECONDS: Final = 2.0
_TAIL_BYTES: Final = 4096
_SINGLE_THREADED: Final = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Death:
    """How a worker ended."""

    reason: str
    """As the ledger tells it of the worker's video."""
    from_outside: bool = False
    """Somebody killed it, and not its supervisor: nothing is known against the worker or its video."""


class Child:
    """One worker process with its ring. It dies with the thread that started it."""

    def __init__(self, shape: RingShape, setup: Message) -> None:
        self.ring = Ring.create(shape)
        self.channel, theirs = Channel.pair()
        self._log = os.memfd_create("mrrn-decoder-log", os.MFD_CLOEXEC)
        fcntl.fcntl(self._log, fcntl.F_SETFL, os.O_APPEND)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, str(theirs.fileno()), str(self.ring.descriptor), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            pass_fds=(theirs.fileno(), self.ring.descriptor),
            env=os.environ
            | _SINGLE_THREADED
            | {"PYTHONPATH": os.pathsep.join(str(Path(p).absolute()) for p in sys.path if p)},
            start_new_session=True,
        )
        theirs.close()
        self.ring.close()
        self.channel.send(setup | {"ring": [shape.slots, shape.slot_bytes]})

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def kill(self) -> None:
        """End the process at once and free what it held."""
        self._process.kill()
        self._wait()
        self._free()

    def reap(self) -> Death:
        """Free what a process that ended by itself held, and say how it ended."""
        if not self._wait():
            self.kill()
            return Death("decoder closed its channel")
        how = _how_it_ended(self._process.returncode, self._last_words())
        self._free()
        return how

    def _wait(self) -> bool:
        """Whether the process is gone; one stuck in the kernel (on a dead network drive) is left behind, killed."""
        try:
            self._process.wait(_REAP_SECONDS)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _free(self) -> None:
        self.channel.close()
        os.close(self._log)

    def _last_words(self) -> str:
        size = os.fstat(self._log).st_size
        tail = os.pread(self._log, _TAIL_BYTES, max(0, size - _TAIL_BYTES)).decode(errors="replace").splitlines()
        return next((line.strip() for line in reversed(tail) if line.strip()), "")


def _how_it_ended(code: int, last_words: str) -> Death:
    said = f" ({last_words[:200]})" if last_words else ""
    if code == -signal.SIGXCPU:
        return Death("used more processor time than the limit allows")
    if code == -signal.SIGKILL:
        reason = "decoder killed from outside (SIGKILL), as the system does when memory runs out"
        return Death(reason, from_outside=True)
    if code < 0:
        return Death(f"decoder crashed with {signal.Signals(-code).name}{said}")
    return Death(f"decoder stopped with exit code {code}{said}")


START_SECONDS: Final = 120.0
"""For a worker to start: longer than any import takes."""


@dataclass
class Job:
    """The video that a worker has."""

    video: Wanted
    started: float
    progress: float
    """When it last was known to go on."""
    waited: float = 0.0
    """Seconds in which it could not go on because the consumer held all its blocks."""
    begun: bool = False
    """Whether the worker said that it has it."""

    def failed(self, reason: str) -> Outcome:
        """The video's outcome when its worker is no more."""
        seconds = time.monotonic() - self.started - self.waited
        return Outcome(video_id=self.video.video_id, status="failed", reason=reason, seconds=seconds)


@dataclass(frozen=True)
class Delivery:
    """A block in one of the worker's slots."""

    slot: int
    num_bytes: int
    first_frame: int
    frames_FHW3: NDArray[np.uint8]
    pts_seconds_F: NDArray[np.float64]


class Charge:
    """A child process and what is known of it. Messages that no worker sends raise ValueError or its like."""

    def __init__(self, settings: DecodeSettings) -> None:
        self.child = Child(settings.ring, settings.for_worker())
        self.ready = False
        """It has said that it can be given a video."""
        self.proven = False
        """It has begun with a video at least once: whatever ends it now, workers as such do start."""
        self.job: Job | None = None
        self.videos = 0
        """Videos it has finished."""
        self._started = time.monotonic()
        self._free = set(range(settings.blocks_ahead))
        self._full_since: float | None = None

    def give(self, video: Wanted) -> None:
        """Have it decode a video."""
        assert self.job is None
        now = time.monotonic()
        self.job = Job(video, started=now, progress=now)
        if self._full_since is not None:
            self._full_since = now
        self.child.channel.send({"path": str(video.path)})

    def delivery(self, message: Message) -> Delivery:
        """A block that it announces; the slot is the consumer's from here on."""
        slot, (frames, height, width) = message["slot"], message["shape"]
        num_bytes = frames * height * width * 3
        if slot not in self._free or not 0 < num_bytes <= self.child.ring.shape.slot_bytes:
            raise ValueError(f"slot {slot}, shape {frames, height, width}")
        pts_seconds_F = np.array(message["pts"], np.float64)
        if pts_seconds_F.shape != (frames,):
            raise ValueError(f"{frames} frames, times {pts_seconds_F.shape}")
        self._free.remove(slot)
        if not self._free:
            self._full_since = time.monotonic()
        frames_FHW3 = self.child.ring.slot(slot)[:num_bytes].reshape(frames, height, width, 3)
        return Delivery(slot, num_bytes, int(message["first"]), frames_FHW3, pts_seconds_F)

    def take_back(self, delivery: Delivery) -> None:
        """The consumer released a block: its slot is free again."""
        if delivery.num_bytes > BLOCK_BYTES:
            self.child.ring.forget(delivery.slot)
        self._free.add(delivery.slot)
        if self._full_since is not None and self.job is not None:
            now = time.monotonic()
            self.job.waited += now - self._full_since
            self.job.progress = now
        self._full_since = None
        self.child.channel.send({"free": delivery.slot})

    def finish(self, end: dict[str, Any]) -> Outcome:
        """The end of its video, as it tells it; it has none from here on."""
        assert self.job is not None
        if end["status"] not in ("done", "suspect", "failed"):
            raise ValueError(f"status {end['status']!r}")
        declared = end["declared"]
        outcome = Outcome(
            video_id=self.job.video.video_id,
            status=end["status"],
            reason=str(end["reason"]),
            num_frames=int(end["frames"]) if end["status"] != "failed" else 0,
            declared_frames=None if declared is None else int(declared),
            decoder_errors=int(end["errors"]),
            seconds=float(end["seconds"]),
        )
        self.job = None
        self.videos += 1
        return outcome

    def deadline(self, limits: Limits) -> tuple[float, str]:
        """When it must have gone on, and what it is guilty of otherwise."""
        job = self.job
        if not self.ready:
            return self._started + START_SECONDS, f"not ready after {START_SECONDS:g} s"
        if job is None or not self._free:
            return np.inf, ""
        stall = (job.progress + limits.stall_seconds, f"no new frame for {limits.stall_seconds:g} s")
        whole = (job.started + job.waited + limits.video_seconds, f"took longer than {limits.video_seconds:g} s")
        return min(stall, whole)

    def forgive(self, seconds: float) -> None:
        """Move its deadlines: the machine stood still for so long."""
        self._started += seconds
        if self.job is not None:
            self.job.progress += seconds
            self.job.waited += seconds
