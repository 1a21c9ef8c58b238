"""The supervisor's side of one decode worker: start it, talk to it, end it, and say how it died."""

import fcntl
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from extract.channel import Channel, Message
from extract.ring import Ring, RingShape

_START: Final = "from extract.worker import main; main()"
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
