"""One decode worker as its supervisor sees it: its video, its slots, its clock, and what its messages mean.

Times are monotonic seconds.
"""

import time
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cache.ledger import Outcome
from extract.blocks import DecodeSettings, Wanted
from extract.channel import Message
from extract.child import Child
from extract.decode import BLOCK_BYTES
from extract.limits import Limits

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
