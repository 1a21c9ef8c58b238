"""What runs between the supervisor and a decode worker: small JSON messages, and shared memory that carries frames.

Messages are JSON because a worker that a hostile video took over must not be able to make its supervisor run anything.
What a worker says is read as one of the types below, or not at all, and names the video that it is about by the number
that the supervisor gave it. Frames go through a ring of a few slots. Its memory has no name in any file system, so
nothing is left behind however its users end; a page exists from the first time it is written to.
"""

import fcntl
import json
import mmap
import os
import socket
from contextlib import suppress
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from cache.ledger import Count

_LARGEST_MESSAGE: Final = 1 << 18
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class _Said(msgspec.Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """What a worker says."""


class Ready(_Said, frozen=True):
    """The worker can be given a video."""


class Unusable(_Said, frozen=True):
    """It never will, as its decoder is not installed."""

    reason: str


class _AboutVideo(_Said, frozen=True, kw_only=True):
    video: Count
    """Number that the supervisor gave the video."""


class Begun(_AboutVideo, frozen=True):
    """It has the video."""


class Alive(_AboutVideo, frozen=True):
    """It is decoding."""


class Filled(_AboutVideo, frozen=True):
    """A block is in a slot."""

    slot: Count
    first: Count
    """Index of its first frame."""
    shape: tuple[Count, Count, Count]
    """[F, H, W]."""
    pts: list[float]


class Times(_AboutVideo, frozen=True):
    """Times of frames, without the frames."""

    pts: list[float]


class Ended(_AboutVideo, frozen=True):
    """What became of it."""

    status: Literal["done", "suspect", "failed"]
    reason: Annotated[str, msgspec.Meta(max_length=10_000)]
    frames: Count
    declared: Count | None
    errors: Count
    seconds: Annotated[float, msgspec.Meta(ge=0, lt=1e9)]
    last: bool
    """Whether the worker ends now."""


Message = Ready | Unusable | Begun | Alive | Filled | Times | Ended

_DECODER: Final = msgspec.json.Decoder(Message)


def parse(content: bytes) -> Message:
    """What a worker said. Raises msgspec.MsgspecError, RecursionError or ValueError if no worker says that."""
    message: Message = _DECODER.decode(content)
    return message


class Channel:
    """One end of a socket pair that keeps messages apart: each is sent and received whole."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    @classmethod
    def pair(cls) -> "tuple[Channel, socket.socket]":
        """Returns this side's channel and the other side's socket."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours), theirs

    def fileno(self) -> int:
        """For selectors."""
        return self._end.fileno()

    def send(self, message: Message | dict[str, Any], wait: bool = True) -> None:
        """Send a message. Does nothing if the other side is gone; `receive` reports that.

        Raises BlockingIOError if not `wait` and the other side has not read what was sent before.
        """
        # Paths may hold bytes that are not UTF-8, which `json` carries as lone surrogates.
        content = json.dumps(message).encode() if isinstance(message, dict) else msgspec.json.encode(message)
        with suppress(BrokenPipeError, ConnectionResetError):
            self._end.send(content, 0 if wait else socket.MSG_DONTWAIT)

    def receive(self, wait: bool = True) -> bytes | None:
        """The next message; None if the other side is gone. Raises BlockingIOError if there is none and not `wait`."""
        try:
            content = self._end.recv(_LARGEST_MESSAGE, 0 if wait else socket.MSG_DONTWAIT)
        except ConnectionResetError:
            # It ended with messages of ours unread. Linux reports that once, ahead of what it had still sent.
            return self.receive(wait)
        return content or None

    def close(self) -> None:
        """Close this end."""
        self._end.close()


class Ring:
    """One worker's slots, mapped into this process. Numpy views keep the mapping alive after `close`."""

    def __init__(self, descriptor: int, slots: int, slot_bytes: int) -> None:
        self.descriptor, self.slots, self.slot_bytes = descriptor, slots, slot_bytes
        self._memory = mmap.mmap(descriptor, slots * slot_bytes)

    @classmethod
    def create(cls, slots: int, block_bytes: int) -> "Ring":
        """A new ring. Each slot has room for `block_bytes`, in whole pages. The descriptor is handed to the worker."""
        slot_bytes = -(-block_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        descriptor = os.memfd_create("mrrn-frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, slots * slot_bytes)
        # Reading what a worker has cut off would kill the supervisor (SIGBUS).
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        return cls(descriptor, slots, slot_bytes)

    def slot(self, index: int) -> NDArray[np.uint8]:
        """The whole slot, flat. Raises IndexError if there is no such slot."""
        if not 0 <= index < self.slots:
            raise IndexError(f"slot {index} of a ring of {self.slots}")
        return np.frombuffer(self._memory, np.uint8, self.slot_bytes, index * self.slot_bytes)

    def discard(self, index: int) -> None:
        """Give the slot's pages back to the system; its content becomes zeros."""
        self._memory.madvise(mmap.MADV_REMOVE, index * self.slot_bytes, self.slot_bytes)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.descriptor)
