"""What runs between the supervisor and a decode worker: small JSON messages, and shared memory that carries frames.

Messages are JSON because a worker that a hostile video took over must not be able to make its supervisor run anything.
Frames go through a ring of a few slots. Its memory has no name in any file system, so nothing is left behind however
its users end; a page exists from the first time it is written to.
"""

import json
import mmap
import os
import socket
from contextlib import suppress
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Message = dict[str, Any]

_LARGEST_MESSAGE: Final = 1 << 18


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

    def send(self, message: Message) -> None:
        """Send a message. Does nothing if the other side is gone; `receive` reports that."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self._end.send(json.dumps(message, allow_nan=False).encode())

    def receive(self, wait: bool = True) -> Message | None:
        """The next message; None if the other side is gone. Raises BlockingIOError if there is none and not `wait`."""
        try:
            content = self._end.recv(_LARGEST_MESSAGE, 0 if wait else socket.MSG_DONTWAIT)
        except ConnectionResetError:
            # It ended with messages of ours unread. Linux reports that once, ahead of what it had still sent.
            return self.receive(wait)
        return json.loads(content) if content else None

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
        descriptor = os.memfd_create("mrrn-frames", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, slots * slot_bytes)
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
