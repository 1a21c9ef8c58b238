"""One decode worker as its supervisor sees it: the child process, the video it has, its slots and its deadlines.

Times are monotonic seconds.
"""

import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from cache.ledger import Outcome
from extract.decode.types import BLOCK_BYTES, DecodeSettings, FrameBlock, Limits, VideoEnd, VideoRequest
from extract.decode.wire import Alive, Begun, Channel, Ended, Filled, Message, Ring, Times, parse

START_SECONDS: Final = 120.0
"""Time limit for a worker to start: longer than any import takes."""

MESSAGE_ERRORS: Final = (msgspec.MsgspecError, ValueError, LookupError, RecursionError)
"""Raised by reading a message that no worker sends. A hostile video may have taken the worker over."""

NOT_READING: Final = "decoder does not read what it is sent"

_START: Final = "from extract.decode.worker import main; main()"
_REAP_SECONDS: Final = 2.0
_TAIL_BYTES: Final = 4096
_SINGLE_THREADED: Final = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass
class CurrentVideo:
    """The video that a worker has."""

    video: VideoRequest
    number: int
    """By which messages name it."""
    started: float
    progress: float
    """The last sign of progress."""
    waited: float = 0.0
    """Seconds in which the worker had to wait because the consumer held all its blocks."""
    begun: bool = False
    """Whether the worker has confirmed it."""
    frames: int = 0
    """Index behind the last frame received."""
    times: list[NDArray[np.float64]] = field(default_factory=list)
    """Times of all frames, if spans were asked for."""
    last_seconds: float = -np.inf
    """The time of the last frame received."""

    def failed(self, reason: str) -> Outcome:
        """The video's outcome if its worker is gone."""
        seconds = time.monotonic() - self.started - self.waited
        return Outcome(video_id=self.video.video_id, status="failed", reason=reason, seconds=seconds)


class WorkerProcess:
    """A child process and what is known of it. It dies with the thread that started it.

    Methods that read a message raise one of `MESSAGE_ERRORS` if no worker sends such a message.
    """

    def __init__(self, settings: DecodeSettings) -> None:
        self.ready = False
        """Whether it has said that it can be given a video."""
        self.proven = False
        """Whether it has begun with a video at least once: if it ends after that, workers as such do start."""
        self.current: CurrentVideo | None = None
        self.videos = 0
        """Videos it has finished."""
        self._given = 0
        self._most_frames = settings.limits.frames
        self._started = time.monotonic()
        self._bytes_in_slot: dict[int, int] = {}
        """The slots in use, each with the size of its block."""
        self._full_since: float | None = None
        """Since when the consumer holds all slots."""
        self._start(settings)

    def _start(self, settings: DecodeSettings) -> None:
        # Address space for the largest pictures; pages exist only for what is used.
        self._ring = Ring.create(settings.blocks_ahead, max(BLOCK_BYTES, settings.limits.pixels * 3))
        self._channel, theirs = Channel.pair()
        self._log = os.memfd_create("mrrn-decoder-log", os.MFD_CLOEXEC)
        fcntl.fcntl(self._log, fcntl.F_SETFL, os.O_APPEND)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, str(theirs.fileno()), str(self._ring.descriptor), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            pass_fds=(theirs.fileno(), self._ring.descriptor),
            env=os.environ
            | _SINGLE_THREADED
            | {"PYTHONPATH": os.pathsep.join(str(Path(p).absolute()) for p in sys.path if p)},
            start_new_session=True,
        )
        # The channel ends with the last process that has it, which may be a child of the worker.
        self._pidfd = os.pidfd_open(self._process.pid)
        theirs.close()
        self._ring.close()
        self._channel.send(settings.for_worker() | {"ring": [self._ring.slots, self._ring.slot_bytes]})

    @property
    def descriptors(self) -> tuple[int, int]:
        """For selectors: readable when there is a message, and when the process has ended."""
        return self._channel.fileno(), self._pidfd

    # --- its video and its messages ---

    def receive(self) -> Message | None:
        """The next message; None if the process has ended. Raises BlockingIOError if there is no message now."""
        content = self._channel.receive(wait=False)
        return None if content is None else parse(content)

    def give(self, video: VideoRequest) -> None:
        """Have it decode a video. Raises BlockingIOError if it does not read."""
        assert self.current is None
        now = time.monotonic()
        self._given += 1
        self.current = CurrentVideo(video, self._given, started=now, progress=now)
        if self._full_since is not None:
            self._full_since = now
        message = {"path": str(video.path), "spans": video.spans, "follow_seconds": video.follow_seconds}
        self._channel.send({"video": self._given, **message}, wait=False)

    def heard(self, message: Begun | Alive | Filled | Times | Ended) -> None:
        """Progress with its video."""
        if self.current is None or message.video != self.current.number:
            raise ValueError(f"about video {message.video}, which it does not have")
        if not self.current.begun and not isinstance(message, Begun):
            raise ValueError("about a video that it has not begun")
        self.current.begun = self.proven = True
        self.current.progress = time.monotonic()

    def block(self, message: Filled, on_release: Callable[[], None]) -> FrameBlock:
        """The block that a message announces. Its slot belongs to the consumer until `free_slot`."""
        assert self.current is not None
        frames, height, width = message.shape
        num_bytes = frames * height * width * 3
        if message.slot in self._bytes_in_slot or not 0 < num_bytes <= self._ring.slot_bytes:
            raise ValueError(f"slot {message.slot}, shape {message.shape}")
        slot = self._ring.slot(message.slot)
        if not self._was_asked_for(message.first, message.first + frames):
            raise ValueError(f"{frames} frames from {message.first} after {self.current.frames} frames")
        pts_seconds_F = self._checked_times(message.pts, self.current.last_seconds, message.first)
        if len(pts_seconds_F) != frames:
            raise ValueError(f"{frames} frames, {len(pts_seconds_F)} times")
        self.current.last_seconds = pts_seconds_F[-1]
        self._bytes_in_slot[message.slot] = num_bytes
        self.current.frames = message.first + frames
        if len(self._bytes_in_slot) == self._ring.slots:
            self._full_since = time.monotonic()
        return FrameBlock(
            video_id=self.current.video.video_id,
            first_frame=message.first,
            frames_FHW3=slot[:num_bytes].reshape(frames, height, width, 3),
            pts_seconds_F=pts_seconds_F,
            on_release=on_release,
        )

    def _was_asked_for(self, first: int, stop: int) -> bool:
        """Whether these frames of its video may come now."""
        assert self.current is not None
        spans = self.current.video.spans
        if spans is None:
            return first == self.current.frames
        return first >= self.current.frames and any(start <= first < stop <= end for start, end in spans)

    def add_times(self, message: Times) -> None:
        """Times of further frames of its video."""
        assert self.current is not None
        if self.current.video.spans is None:
            raise ValueError("times that were not asked for")
        before = self.current.times[-1][-1] if self.current.times else -np.inf
        self.current.times.append(self._checked_times(message.pts, before, sum(map(len, self.current.times))))

    def _checked_times(self, times: list[float], before: float, index: int) -> NDArray[np.float64]:
        """Times of the frames from `index` on as an array. Raises ValueError if they do not ascend, or are too many."""
        times_F = np.array([before, *times])
        if not times or not np.isfinite(times_F[1:]).all() or (np.diff(times_F) <= 0).any():
            raise ValueError("times that do not ascend")
        if index + len(times) > self._most_frames:
            raise ValueError(f"{index + len(times)} frames, more than asked for")
        return times_F[1:]

    def free_slot(self, slot: int) -> None:
        """The consumer has released the block in `slot`. Raises BlockingIOError if the worker does not read."""
        if self._bytes_in_slot.pop(slot) > BLOCK_BYTES:
            self._ring.discard(slot)
        if self._full_since is not None and self.current is not None:
            now = time.monotonic()
            self.current.waited += now - self._full_since
            self.current.progress = now
        self._full_since = None
        self._channel.send({"free": slot}, wait=False)

    def finish(self, end: Ended) -> VideoEnd:
        """The end of its video, from its last message about it. The worker has no video afterwards."""
        assert self.current is not None
        times_F = np.concatenate(self.current.times) if self.current.times else np.empty(0)
        frames = self.current.frames if self.current.video.spans is None else len(times_F)
        if end.status != "failed" and not 0 < end.frames == frames:
            raise ValueError(f"{end.status} with {end.frames} frames after {frames}")
        outcome = Outcome(
            video_id=self.current.video.video_id,
            status=end.status,
            reason=end.reason,
            num_frames=frames if end.status != "failed" else 0,
            declared_frames=end.declared,
            decoder_errors=end.errors,
            seconds=end.seconds,
        )
        self.current = None
        self.videos += 1
        return VideoEnd(outcome, times_F)

    # --- its deadlines ---

    def deadline(self, limits: Limits) -> tuple[float, str]:
        """Deadline for the next sign of progress, and the reason recorded if it passes."""
        current = self.current
        if not self.ready:
            return self._started + START_SECONDS, f"not ready after {START_SECONDS:g} s"
        if current is None or self._full_since is not None:
            return np.inf, ""
        stall = (current.progress + limits.stall_seconds, f"no new frame for {limits.stall_seconds:g} s")
        latest = current.started + current.waited + limits.video_seconds
        return min(stall, (latest, f"took longer than {limits.video_seconds:g} s"))

    def extend_deadlines(self, seconds: float) -> None:
        """Move its deadlines, because the machine stood still for `seconds`."""
        self._started += seconds
        if self.current is not None:
            self.current.progress += seconds
            self.current.waited += seconds

    # --- its end ---

    def kill(self) -> None:
        """End the process and its children at once and free what it held."""
        self._kill_group()
        self._wait()
        self._close()

    def reap(self) -> tuple[str, bool]:
        """Free what a process that ended by itself held, and end its children.

        Returns the reason for its video, and whether it was killed from outside, though not by its supervisor: then
        nothing is known against the worker or its video.
        """
        if not select.select([self._pidfd], [], [], _REAP_SECONDS)[0]:
            self.kill()
            return "decoder closed its channel", False
        self._kill_group()
        self._wait()
        size = os.fstat(self._log).st_size
        tail = os.pread(self._log, _TAIL_BYTES, max(0, size - _TAIL_BYTES)).decode(errors="replace").splitlines()
        last_line = next((line.strip() for line in reversed(tail) if line.strip()), "")
        self._close()
        code = self._process.returncode
        return _reason_of(code, last_line), code == -signal.SIGKILL

    def _kill_group(self) -> None:
        """Kill the process, if it still runs, and the children that it left in its group."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _wait(self) -> None:
        """Wait for the killed process; one stuck in the kernel (on a dead network drive) is left behind."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_REAP_SECONDS)

    def _close(self) -> None:
        self._channel.close()
        os.close(self._pidfd)
        os.close(self._log)


def _reason_of(code: int, last_line: str) -> str:
    """Why a process ended, from its exit code and the last line of its standard error that is not blank."""
    if code == -signal.SIGXCPU:
        return "used more processor time than the limit allows"
    if code == -signal.SIGKILL:
        return "decoder killed from outside (SIGKILL), as the system does when memory runs out"
    how = f"crashed with {signal.Signals(-code).name}" if code < 0 else f"stopped with exit code {code}"
    return f"decoder {how}" + (f" ({last_line[:200]})" if last_line else "")
