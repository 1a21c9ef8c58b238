"""Decoders that go wrong on purpose. Workers import this module: the file's name says what is done to the worker.

`by_name` behaves like the default decoder unless the video's stem is the name of a sin.
"""

import ctypes
import itertools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from extract.decode import MissingDecoderError
from extract.decode.backends.protocol import OpenVideo, VideoSource
from extract.decode.backends.pyav import open_video


def hold_the_interpreter() -> None:
    """A native loop that never lets another thread run, and that no signal handler or alarm can end."""
    sum(itertools.repeat(0))


def segfault() -> None:
    """Read from address zero."""
    ctypes.string_at(0)


def eat_memory() -> None:
    """Take memory until there is no more."""
    eaten = []
    while True:
        eaten.append(bytearray(1 << 24))


def abort() -> None:
    """What a C++ exception that nobody catches does."""
    ctypes.CDLL(None).abort()


def burn_processor() -> None:
    """Run without an end but let others run."""
    while True:
        pass


def leave() -> None:
    """End the process as a library might."""
    os._exit(7)


def stumble() -> None:
    """A bug."""
    raise ZeroDivisionError("a bug in the decoder")


def chatter() -> None:
    """Write what looks like FFmpeg's errors, without an end."""
    while True:
        os.write(2, b"[h264 @ 0x1234] error while decoding\n" * 1000)


def wait_for_ever() -> None:
    """A file on a network drive that went away."""
    time.sleep(1e6)


SINS: dict[str, Callable[[], None]] = {
    sin.__name__: sin
    for sin in (
        hold_the_interpreter,
        segfault,
        eat_memory,
        abort,
        burn_processor,
        leave,
        stumble,
        chatter,
        wait_for_ever,
    )
}


def stem_of(source: VideoSource) -> str:
    """The file's own name behind the descriptor."""
    return Path(source.name).readlink().stem


def by_name(source: VideoSource) -> OpenVideo:
    """Sin at once, or after some frames where the name is `late-<sin>`."""
    assert "torch" not in sys.modules, "workers must stay lean"
    stem = stem_of(source)
    if stem in SINS:
        SINS[stem]()
    video = open_video(source)
    if stem == "endless":
        return _Repeating(video)
    sin = SINS.get(stem.removeprefix("late-"))
    return video if sin is None else _Late(video, sin)


class _Wrapper:
    def __init__(self, video: OpenVideo) -> None:
        self._video = video
        self._advanced = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._video, name)


class _Late(_Wrapper):
    def __init__(self, video: OpenVideo, sin: Callable[[], None]) -> None:
        super().__init__(video)
        self._sin = sin

    def advance(self) -> bool:
        """Sins after forty frames."""
        self._advanced += 1
        if self._advanced > 40:
            self._sin()
        return self._video.advance()


class _Repeating(_Wrapper):
    def advance(self) -> bool:
        """Gives the first frame for ever."""
        self._advanced += 1
        return self._video.advance() if self._advanced == 1 else True


def __getattr__(name: str) -> Any:
    if name == "not_installed":
        raise MissingDecoderError("decoder 'not_installed' cannot be used: install it")
    raise AttributeError(name)
