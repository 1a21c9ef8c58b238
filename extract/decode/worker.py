"""The decode worker: a lean child process that decodes videos one after the other into its ring.

Started by `extract.decode.process`; imports a decoder and numpy, never torch (unless the decoder does). Any error here
other than a DecodeError ends the process: the supervisor notices, fails the video and starts another worker.
"""

import json
import os
import re
import resource
import socket
import sys
import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cache.common.errors import DecodeError
from cache.processes import end_with
from extract.decode.backends import MissingDecoderError, load_decoder
from extract.decode.backends.protocol import OpenDecoder
from extract.decode.follow import FollowedFile
from extract.decode.frames import FrameReader, Verdict, judge, opened
from extract.decode.timeline import Sampling
from extract.decode.types import MEBIBYTE, Limits, Spans
from extract.decode.wire import Alive, Begun, Channel, Ended, Filled, Ready, Ring, Times, Unusable

ALIVE_SECONDS: Final = 0.5
"""A worker that decodes frames sends a sign of life at least this often."""

TIMES_AT_ONCE: Final = 4096
"""Times of frames in one message."""

LOG_BYTES: Final = 16 * MEBIBYTE
"""The largest file a worker can write: its log of errors. It writes no other."""

CAN_BE_FOLLOWED: Final = "what can be followed are MPEG-TS, Matroska, and MP4 in fragments or with its index in front"

_FFMPEG_MESSAGE: Final = re.compile(rb"^\[[^\]\n]* @ 0x[0-9a-f]+\]", re.MULTILINE)


class ErrorLog:
    """Counts the messages that FFmpeg wrote to descriptor 2, a file in memory that is opened for appending."""

    KEPT_BYTES: Final = MEBIBYTE

    def __init__(self) -> None:
        self._position = 0

    def count_new(self) -> int:
        """Error messages since the last call."""
        if os.fstat(2).st_size == self._position:
            return 0
        content = os.pread(2, LOG_BYTES, self._position)
        complete = content[: content.rfind(b"\n") + 1]
        self._position += len(complete)
        if self._position > self.KEPT_BYTES:
            os.ftruncate(2, 0)
            self._position = 0
        return len(_FFMPEG_MESSAGE.findall(complete))


@dataclass
class Seen:
    """What is also reported of a video that fails."""

    frames: int = 0
    declared: int | None = None
    errors: int = 0


class Worker:
    """A worker process: its channel, ring and decoder, and the limits that hold for every video."""

    def __init__(self, channel: Channel, ring: Ring, setup: dict[str, Any], decoder: OpenDecoder) -> None:
        self._channel, self._ring, self._decoder = channel, ring, decoder
        self._limits = Limits(**setup["limits"])
        self._sampling = Sampling(**setup["sampling"])
        self._free = deque(range(ring.slots))
        self._slot = self._video = -1
        self._log = ErrorLog()
        self._last_sent = self._waited = 0.0

    def serve(self) -> None:
        """Decode what the supervisor asks for, until it is gone."""
        while (message := _receive(self._channel)) is not None:
            if "free" in message:
                self._free.append(message["free"])
            else:
                self._video = message["video"]
                self._decode(Path(message["path"]), message["spans"], message["follow_seconds"])

    def _decode(self, path: Path, spans: Spans | None, follow_seconds: float | None) -> None:
        self._channel.send(Begun(video=self._video))
        _limit("RLIMIT_CPU", int(time.process_time()) + self._limits.processor_seconds)
        self._log.count_new()
        self._waited, started = 0.0, time.monotonic()
        self._seen = Seen()
        out_of_memory = False
        try:
            verdict = self._deliver(path, spans, follow_seconds)
        except DecodeError as error:
            verdict = Verdict(status="failed", reason=str(error))
        except MemoryError:
            out_of_memory = True
            verdict = Verdict(status="failed", reason=f"needs more than {self._limits.memory_bytes} bytes of memory")
        if verdict.status == "failed" and follow_seconds is not None:
            verdict = replace(verdict, reason=f"{verdict.reason}; {CAN_BE_FOLLOWED}")
        self._channel.send(
            Ended(
                video=self._video,
                status=verdict.status,
                reason=verdict.reason,
                frames=self._seen.frames,
                declared=self._seen.declared,
                errors=self._seen.errors + self._log.count_new(),
                seconds=time.monotonic() - started - self._waited,
                last=out_of_memory,
            )
        )
        if out_of_memory:
            sys.exit()

    def _deliver(self, path: Path, spans: Spans | None, follow_seconds: float | None) -> Verdict:
        """Decode and send the blocks."""
        seen, followed = self._seen, None
        if follow_seconds is not None:
            followed = FollowedFile(path, follow_seconds, self._limits.file_bytes, self._report_alive)
        with opened(path, self._decoder, self._limits, followed) as video:
            seen.declared = video.header.declared_frames
            reader = FrameReader(video, self._sampling, self._limits, spans)
            for block in reader.blocks(self._next_slot, self._report_alive):
                frames, height, width, _ = block.frames_FHW3.shape
                self._channel.send(
                    Filled(
                        video=self._video,
                        slot=self._slot,
                        first=block.first_frame,
                        shape=(frames, height, width),
                        pts=block.pts_seconds_F.tolist(),
                    )
                )
                self._last_sent = time.monotonic()
                seen.errors += self._log.count_new()
            errors, doubt, header = video.errors, video.doubt, video.header
        for start in range(0, len(reader.times), TIMES_AT_ONCE):
            self._channel.send(Times(video=self._video, pts=reader.times[start : start + TIMES_AT_ONCE]))
        # Closing drains the decoder's threads: only now have all errors been written.
        seen.errors = max(errors, seen.errors + self._log.count_new())
        seen.frames = reader.counts.kept
        return judge(reader.counts, header, seen.errors, doubt)

    def _next_slot(self) -> NDArray[np.uint8]:
        """An empty slot; waits while the ring is full."""
        started = time.monotonic()
        while not self._free:
            message = _receive(self._channel)
            if message is None:
                sys.exit()
            self._free.append(message["free"])
        self._waited += time.monotonic() - started
        self._slot = self._free.popleft()
        return self._ring.slot(self._slot)

    def _report_alive(self) -> None:
        now = time.monotonic()
        if now - self._last_sent > ALIVE_SECONDS:
            self._last_sent = now
            self._channel.send(Alive(video=self._video))


def _receive(channel: Channel) -> dict[str, Any] | None:
    """The supervisor's next message; None if it is gone."""
    content = channel.receive()
    return None if content is None else json.loads(content)


def _limit(name: str, value: int) -> None:
    """Lower a limit of this process, or raise it again as far as the administrator allows."""
    which = getattr(resource, name)
    _, hard = resource.getrlimit(which)
    resource.setrlimit(which, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def main() -> None:
    """Arguments: descriptor of the channel, descriptor of the ring, process id of the supervisor."""
    channel_descriptor, ring_descriptor, parent = (int(text) for text in sys.argv[1:4])
    end_with(parent)
    channel = Channel(socket.socket(fileno=channel_descriptor))
    setup = _receive(channel)
    if setup is None:
        return
    ring = Ring(ring_descriptor, *setup["ring"])
    try:
        decoder = load_decoder(setup["decoder"])
    except MissingDecoderError as error:
        channel.send(Unusable(reason=str(error)))
        return
    _limit("RLIMIT_CORE", 0)
    _limit("RLIMIT_FSIZE", LOG_BYTES)
    address_space_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _limit("RLIMIT_AS", address_space_bytes + setup["limits"]["memory_bytes"])
    channel.send(Ready())
    Worker(channel, ring, setup, decoder).serve()
