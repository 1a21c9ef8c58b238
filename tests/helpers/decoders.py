"""Decoders that go wrong on purpose, imported by decode workers.

`by_name` behaves like the default decoder unless the video's stem is the name of a sin or of a letter.
"""

import ctypes
import itertools
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from extract.decode import MissingDecoderError
from extract.decode.backends.protocol import OpenVideo, VideoSource
from extract.decode.backends.pyav import open_video
from extract.decode.worker import Worker


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


ENDED = {"type": "Ended", "video": 1, "status": "done", "reason": "", "frames": 0, "declared": None, "errors": 0,
         "seconds": 0.5, "last": False}  # fmt: skip
FILLED = {"type": "Filled", "video": 1, "slot": 0, "first": 0, "shape": [1, 2, 2], "pts": [0.0]}

LETTERS: dict[str, bytes] = {
    "not_json": b"\xff\xfe",
    "a_number": b"7",
    "deep": b"[" * 100_000,
    "deep_inside": json.dumps(ENDED).replace('""', "[" * 100_000).encode(),
    "no_frames": json.dumps(ENDED).encode(),
    "too_many_frames": json.dumps(ENDED | {"frames": 5}).encode(),
    "endless_frames": json.dumps(ENDED | {"frames": 1e300}).replace("1e+300", "1e999").encode(),
    "a_text_for_errors": json.dumps(ENDED | {"errors": "many"}).encode(),
    "more_errors_than_fit": json.dumps(ENDED | {"errors": 10**30}).encode(),
    "a_negative_length": json.dumps(ENDED | {"declared": -1}).encode(),
    "no_time": json.dumps(ENDED | {"seconds": float("nan")}).encode(),
    "no_text": json.dumps(ENDED | {"reason": "\ud800"}).encode(),
    "no_status": json.dumps(ENDED | {"status": "fine"}).encode(),
    "another_video": json.dumps(ENDED | {"video": 10**6}).encode(),
    "ready_again": b'{"type": "Ready"}',
    "unusable": b'{"type": "Unusable", "reason": "no decoder is installed"}',
    "another_slot": json.dumps(FILLED | {"slot": 99}).encode(),
    "a_later_block": json.dumps(FILLED | {"first": 7}).encode(),
    "too_large_a_block": json.dumps(FILLED | {"shape": [1, 1 << 20, 1 << 20]}).encode(),
    "no_times": json.dumps(FILLED | {"pts": [float("nan")]}).encode(),
    "backward_times": json.dumps(FILLED | {"shape": [2, 2, 2], "pts": [1.0, 0.5]}).encode(),
    "times_not_asked_for": b'{"type": "Times", "video": 1, "pts": [0.0]}',
}
"""Messages that no worker sends, by the stem of the video whose decoder sends them; `"video": 1` is that video."""


def send_letter(letter: bytes) -> None:
    """Send a message in the worker's name, about the video that it has, then stumble."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and not isinstance(worker := frame.f_locals.get("self"), Worker):
        frame = frame.f_back
    assert isinstance(worker, Worker)
    socket.socket(fileno=os.dup(int(sys.argv[1]))).send(letter.replace(b'"video": 1,', b'"video": %d,' % worker._video))
    stumble()


def shrink_the_ring() -> None:
    """What would kill whoever reads the frames."""
    os.ftruncate(int(sys.argv[2]), 0)


def leave_a_child() -> None:
    """End, and leave a child that has the channel."""
    if os.fork():
        os._exit(7)
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
        shrink_the_ring,
        leave_a_child,
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
    if stem in LETTERS:
        send_letter(LETTERS[stem])
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
