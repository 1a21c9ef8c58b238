"""Ctrl-C (SIGINT) and SIGTERM: the first one stops the work where it can be continued, the second one ends at once."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_SAME_SECONDS: Final = 0.5
"""A terminal and the parent (make, torchrun) may both send the signal for one Ctrl-C."""

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """Raised in the main thread for the first signal."""

    def __init__(self, number: int, done: str = "") -> None:
        """`done`: what is done and saved, for the user."""
        super().__init__(done)
        self.number, self.done = number, done


class _State:
    number = 0
    """Of the first signal; 0 before it."""
    seconds = 0.0
    """When it came, by `time.monotonic`."""
    holding = 0
    """Blocks of `held_back` entered."""


def end_silently() -> None:
    """Have Ctrl-C end this process without a traceback, until `interruptible` takes over: while modules are imported.

    Signals that were ignored before, as by `nohup`, stay so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def interruptible() -> Iterator[None]:
    """Have signals raise `Interrupted` in the `with` block, and a second one end the process.

    Does nothing outside the main thread, and for signals that were ignored before, as by `nohup`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.getsignal(each) for each in _SIGNALS}
    for each, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(each, _on_signal)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        _State.number = _State.holding = 0


def _on_signal(number: int, _frame: FrameType | None) -> None:
    now = time.monotonic()
    if not _State.number:
        _State.number, _State.seconds = number, now
        if not _State.holding:
            raise Interrupted(number)
    elif now - _State.seconds > _SAME_SECONDS:
        # A bar hides the cursor.
        os.write(2, b"\x1b[?25h\n" if sys.stderr.isatty() else b"")
        os._exit(128 + number)


@contextmanager
def held_back() -> Iterator[Callable[[], int]]:
    """Hold the first signal back until the end of the `with` block; gives a function that returns it, or 0."""
    _State.holding += 1
    try:
        yield lambda: _State.number
    finally:
        _State.holding -= 1
    if _State.number and not _State.holding:
        raise Interrupted(_State.number)


@contextmanager
def let_through() -> Iterator[None]:
    """Have a signal that is held back raise `Interrupted` here: where nothing is lost, or only waiting is done."""
    holding, _State.holding = _State.holding, 0
    try:
        if _State.number and holding:
            raise Interrupted(_State.number)
        yield
    finally:
        _State.holding = holding


@contextmanager
def done_so_far(done: Callable[[], str]) -> Iterator[None]:
    """Have a signal in the `with` block tell the user what `done` says then is done and saved."""
    try:
        yield
    except Interrupted as interrupted:
        raise Interrupted(interrupted.number, done()) from None
