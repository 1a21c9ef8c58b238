"""Break a cache's processes on purpose: kill them, refuse their system calls, record what they write.

A `Server` is a process that has imported what workers need and forks them, so that a worker costs milliseconds. With
the shim (faults/shim.c, compiled on the spot), a test counts, refuses, kills at or records their file operations.
"""

import contextlib
import ctypes
import functools
import json
import mmap
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.commit import token_of
from cache.fingerprint import LEVELS
from cache.store import FeatureCache
from tests.helpers.cache import make_fingerprint, num_frames_of, video_features

FOLDER = Path(__file__).parents[1] / "faults"


class _Fields(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("counter", "armed", "error", "lasting", "fired", "kind", "trace")),
        ("root", ctypes.c_char * 1024),
    ]


class Control:
    """What the shim shall do, shared with all processes that have it."""

    def __init__(self, folder: Path) -> None:
        self.path, self.trace_path = folder / "control", folder / "trace"
        self.path.write_bytes(bytes(ctypes.sizeof(_Fields)))
        self.trace_path.touch()
        with self.path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), ctypes.sizeof(_Fields))
        self._fields = _Fields.from_buffer(self._memory)
        self.disarm()

    def watch(self, root: Path, *, trace: bool = False) -> None:
        """Look at operations below `root` from now on, and count them from 0."""
        self._fields.root = str(root.resolve()).encode()
        self._fields.trace = int(trace)
        self.disarm()

    def arm(self, number: int, error: int, lasting: int = 0) -> None:
        """Refuse operation `number` and `lasting` more with `error`; kill its process instead where it is 0."""
        self.disarm()
        self._fields.error, self._fields.lasting = error, lasting
        self._fields.armed = number

    def disarm(self) -> None:
        """Let everything through, and count from 0."""
        self._fields.armed = -1
        self._fields.counter = self._fields.fired = 0

    @property
    def counter(self) -> int:
        """Operations since `watch`, `arm` or `disarm`."""
        return self._fields.counter

    @property
    def fired(self) -> int:
        """Operations that were refused."""
        return self._fields.fired

    @property
    def kind(self) -> str:
        """What the first of them was: o(pen), i(nput), w(rite), t(runcate), s(ync), r(ename), u(nlink), m(kdir)."""
        return chr(self._fields.kind)


@functools.cache
def _shim() -> Path:
    """The compiled shim; skips the test where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("refusing and recording system calls needs Linux and a C compiler (gcc)")
    library = Path(tempfile.mkdtemp(prefix="shim-")) / "shim.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-w", "-o", library, FOLDER / "shim.c", "-ldl"], check=True, text=True
    )
    return library


def under(control: Control) -> dict[str, str]:
    """What the environment of a process needs for its file operations to go through the shim."""
    return {
        "LD_PRELOAD": str(_shim()),
        "FAULTS_CONTROL": str(control.path),
        "FAULTS_TRACE": str(control.trace_path),
    }


class Server:
    """A process that forks workers (faults/worker.py)."""

    def __init__(self, control: Control | None = None, modules: Sequence[str] = ()) -> None:
        """`modules` are imported once, so that workers need not."""
        env = {**os.environ, "PYTHONPATH": str(FOLDER.parents[1])}
        if control is not None:
            env |= under(control)
        command = [sys.executable, FOLDER / "worker.py", *modules]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def start(self, function: str, **arguments: Any) -> int:
        """Fork a worker that calls a function of faults/worker.py; its process id."""
        return self._ask({"function": function, "arguments": arguments})

    def wait(self, worker: int) -> int:
        """The worker's exit code, or minus the signal that ended it."""
        return self._ask({"wait": worker})

    def run(self, function: str, **arguments: Any) -> int:
        """Start a worker and wait for its end."""
        return self.wait(self.start(function, **arguments))

    def _ask(self, question: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question, default=str) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """End it; its workers have ended already."""
        self._process.communicate()


@contextlib.contextmanager
def serving(control: Control | None = None, modules: Sequence[str] = ()) -> Iterator[Server]:
    """A server for as long as it is needed."""
    server = Server(control, modules)
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def replayed_by(**variables: object) -> Iterator[None]:
    """If something fails inside, note the command that runs the same schedule of the current test again."""
    try:
        yield
    except BaseException as error:
        test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
        shown = " ".join(f"{name}={value}" for name, value in variables.items())
        error.add_note(f"the same again: {shown} python -m pytest '{test}'")
        raise


def seed_of(default: int | None = None) -> int:
    """The seed of a random schedule: FAULTS_SEED, where a failed one is run again, else `default` or a new one."""
    given = os.environ.get("FAULTS_SEED", default)
    return int(given) if given is not None else secrets.randbits(32)


def kill(worker: int) -> None:
    """As the kernel does when memory is short, or a user who has had enough."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker, signal.SIGKILL)


def assert_sound(cache: Path, acknowledged: set[str]) -> set[str]:
    """The promise: all that was acknowledged is there as it was made, nothing is half there. What is there.

    Opens the cache as the next extraction does, which clears up first.
    """
    with FeatureCache.open_for_extraction(cache, make_fingerprint()) as opened:
        there = set(opened.video_ids)
        assert acknowledged <= there, f"lost: {sorted(acknowledged - there)[:5]}"
        for video_id in there:
            expected = video_features(video_id, num_frames_of(video_id), len(opened.views))
            for level in LEVELS:
                found = opened.features(video_id, level)
                assert np.array_equal(found, expected[level][0]), f"changed: {video_id} {level}"
        rows = {row.name for row in opened.ledger.shards()}
        # The writer of a killed extraction may live a moment longer and begin something, under a name nobody reads.
        names = {entry.name for entry in (cache / "shards").iterdir() if token_of(entry.name) is None}
        assert names == rows, "half-visible or missing shards"
        places = [(place.shard, place.position) for place in opened.places]
        assert len(set(places)) == len(places), "two videos in one place"
    return there
