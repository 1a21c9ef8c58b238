"""Messages between the supervisor and a decode worker: small JSON objects, each sent and received whole.

JSON, because a worker that a hostile video took over must not be able to make its supervisor run anything.
"""

import json
import socket
from contextlib import suppress
from typing import Any, Final

Message = dict[str, Any]

_LARGEST_MESSAGE: Final = 1 << 18


class Channel:
    """One end of a socket pair that keeps messages apart."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    @classmethod
    def pair(cls) -> "tuple[Channel, socket.socket]":
        """(this side's channel, the other side's socket)."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours), theirs

    def fileno(self) -> int:
        """For selectors."""
        return self._end.fileno()

    def send(self, message: Message) -> None:
        """Send; where the other side is gone nothing happens: `receive` tells."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self._end.send(json.dumps(message, allow_nan=False).encode())

    def receive(self, wait: bool = True) -> Message | None:
        """Take a message; None where the other side is gone. BlockingIOError where there is none and `wait` is off."""
        try:
            content = self._end.recv(_LARGEST_MESSAGE, 0 if wait else socket.MSG_DONTWAIT)
        except ConnectionResetError:
            # It ended with messages of ours unread. Linux reports that once, ahead of what it had still sent.
            return self.receive(wait)
        return json.loads(content) if content else None

    def close(self) -> None:
        """Close this end."""
        self._end.close()
