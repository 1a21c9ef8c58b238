"""A file that is still written, or a pipe, as a stream that waits for more bytes. Read once, from beginning to end."""

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cache.common.errors import DecodeError
from extract.decode.containers import HEAD_BYTES, container_of, open_for_reading

POLL_SECONDS: Final = 0.1
"""Between two looks for more bytes."""

CERTAIN_BYTES: Final = 1 << 12
"""A container may be recognised by so few first bytes, so that a slow stream begins soon."""


class FollowedFile:
    """Ends when the pipe is closed by its writers, or when nothing has come for `idle_seconds`."""

    def __init__(self, path: Path, idle_seconds: float, max_bytes: int, tick: Callable[[], None]) -> None:
        """`tick` is called while it waits. Raises DecodeError, with the reason, if `path` is neither file nor pipe."""
        self._descriptor = open_for_reading(path)
        mode = os.fstat(self._descriptor).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
            self.close()
            raise DecodeError("neither a regular file nor a pipe")
        self._is_pipe = stat.S_ISFIFO(mode)
        self._idle_seconds, self._max_bytes, self._tick = idle_seconds, max_bytes, tick
        self._bytes_read, self._ended = 0, False
        self._head = b""
        """What was read to recognise the container and not yet by the decoder."""

    def container(self) -> str:
        """The container by the first bytes. Raises DecodeError if it is unknown, or nothing comes."""
        while len(self._head) < CERTAIN_BYTES and (piece := self._more(HEAD_BYTES)):
            self._head += piece
        if not self._head:
            raise DecodeError(f"nothing came in {self._idle_seconds:g} s")
        return container_of(self._head)

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size`; none at the end. Raises DecodeError if there are more than `max_bytes`."""
        piece, self._head = self._head[:size], self._head[size:]
        return piece or self._more(size)

    def _more(self, size: int) -> bytes:
        since = time.monotonic()
        while not self._ended:
            try:
                piece = os.read(self._descriptor, size)
                # A pipe that nobody has opened for writing yet looks like one that is closed.
                self._ended = self._is_pipe and not piece and self._bytes_read > 0
            except BlockingIOError:
                piece = b""
            except OSError as error:
                raise DecodeError(f"cannot be read: {error.strerror}") from error
            if piece:
                self._bytes_read += len(piece)
                if self._bytes_read > self._max_bytes:
                    raise DecodeError(f"more than {self._max_bytes} bytes")
                return piece
            self._ended |= time.monotonic() - since > self._idle_seconds
            if not self._ended:
                self._tick()
                time.sleep(POLL_SECONDS)
        return b""

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._descriptor)
