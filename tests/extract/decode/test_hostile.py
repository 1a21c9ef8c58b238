"""A worker that a hostile video took over: whatever it says costs at most that video.

The supervisor is the real one; its workers are played by the test, in one process, over real channels.
"""

import json
import os
import queue
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extract.decode import DecodeSettings, FrameBlock, Limits, VideoEnd, VideoRequest
from extract.decode.process import MESSAGE_ERRORS, WorkerProcess
from extract.decode.supervisor import Result, Supervisor
from extract.decode.wire import Channel, Ring, parse
from tests.helpers.decoders import ENDED, FILLED
from tests.helpers.seeds import replayable, seeds

TIMES = {"type": "Times", "video": 1, "pts": [0.0, 0.5]}
VALID: list[dict[str, Any]] = [
    {"type": "Ready"},
    {"type": "Unusable", "reason": "none"},
    {"type": "Begun", "video": 1},
    {"type": "Alive", "video": 1},
    FILLED,
    TIMES,
    ENDED,
    ENDED | {"frames": 1},
    ENDED | {"status": "failed", "reason": "no"},
]
VALUES: list[Any] = [
    10**30, 1 << 53, (1 << 53) - 1, -1, 0, 1, 2, 3.5, 1e308, float("nan"), float("inf"), "\ud800", "\0", "x" * 20_000,
    "", True, None, [], {}, [[]], [0.0] * 5000, {"type": "Ready"}, "done", [1, 2, 2], [1, -2, -2], [1e9, 1, 1],
]  # fmt: skip


class PlayedWorker(WorkerProcess):
    """A worker without a process; the test holds the other end of its channel."""

    other_end: socket.socket

    def _start(self, settings: DecodeSettings) -> None:
        self._ring = Ring.create(settings.blocks_ahead, settings.limits.pixels * 3)
        self._ring.close()
        self._channel, self.other_end = Channel.pair()
        self.other_end.setblocking(False)
        self._log, self._pidfd = os.memfd_create("log"), os.eventfd(0)
        self._process: Any = type("Ended", (), {"returncode": 1})

    def _kill_group(self) -> None:
        pass

    def _wait(self) -> None:
        self.other_end.close()

    def die(self) -> None:
        """As if the process had ended, while a child of it keeps the channel."""
        os.eventfd_write(self._pidfd, 1)


class Stage:
    """A supervisor with one worker at a time, stepped through by hand."""

    def __init__(self) -> None:
        self.results: queue.SimpleQueue[Result] = queue.SimpleQueue()
        self.supervisor = Supervisor(
            DecodeSettings(workers=1, limits=Limits(pixels=4096, frames=10_000), videos_per_worker=7), self.results
        )
        self.ends: dict[str, VideoEnd] = {}

    def worker(self) -> PlayedWorker | None:
        """The worker that there is now."""
        return next((each for each in self.supervisor._workers if isinstance(each, PlayedWorker)), None)

    def step(self) -> None:
        """One round of the supervisor's loop, and what came of it."""
        self.supervisor._command(lambda: None)  # so that it does not wait
        self.supervisor._step()
        while not self.results.empty():
            item = self.results.get()
            if isinstance(item, FrameBlock):
                assert np.isfinite(item.pts_seconds_F).all()
                item.frames_FHW3.sum()
                item.release()
            else:
                assert isinstance(item, VideoEnd), item
                assert item.outcome.video_id not in self.ends, "two ends of one video"
                self.ends[item.outcome.video_id] = item

    def begin(self, video_id: str, spans: tuple[tuple[int, int], ...] | None = None) -> tuple[PlayedWorker, int]:
        """Have a worker begin with a video; returns it and the video's number."""
        self.supervisor.add(VideoRequest(video_id, Path(video_id), spans))
        for _ in range(6):
            self.step()
            worker = self.worker()
            if worker is None:
                continue
            if not worker.ready:
                say(worker, b'{"type":"Ready"}')
            with suppress(BlockingIOError):
                while content := worker.other_end.recv(1 << 16):
                    if (message := json.loads(content)).get("path", "").endswith(video_id):
                        say(worker, json.dumps({"type": "Begun", "video": message["video"]}).encode())
                        return worker, message["video"]
        raise AssertionError(f"nobody was given {video_id}")

    def check_neighbour(self, video_id: str) -> None:
        """A video whose worker behaves comes out as it was sent."""
        worker, number = self.begin(video_id)
        say(worker, json.dumps(FILLED | {"video": number}).encode())
        say(worker, json.dumps(ENDED | {"video": number, "frames": 1}).encode())
        for _ in range(3):
            self.step()
        assert (self.ends[video_id].outcome.status, self.ends[video_id].outcome.num_frames) == ("done", 1)


def say(worker: PlayedWorker, content: bytes) -> None:
    with suppress(OSError):  # it was killed meanwhile
        worker.other_end.send(content)


def letter(chance: Random, number: int) -> bytes:
    """A message that was a valid one once, mostly."""
    message = dict(chance.choice(VALID))
    if "video" in message and chance.random() < 0.9:
        message["video"] = number
    kind = chance.randrange(8)
    if kind == 0:
        return chance.randbytes(chance.randrange(60))
    if kind == 1:
        return b'{"type":' + chance.choice([b"[", b'{"a":', b"[{"]) * chance.choice([10, 1_000, 50_000])
    for _ in range(chance.randrange(1, 3) if kind > 3 else 0):
        field = chance.choice([*message, "extra"])
        message[field] = chance.choice(VALUES)
    content = bytearray(json.dumps(message).encode())
    for _ in range(chance.randrange(1, 4) if kind in (2, 3) else 0):
        position = chance.randrange(len(content) + 1)
        match chance.randrange(3):
            case 0:
                content[position:position] = chance.choice(
                    [b"9" * 400, b"\\ud800", b"\xff", b"\0", b"-", b"e999", b'"']
                )
            case 1:
                del content[position : position + chance.randrange(1, 20)]
            case 2:
                content[position : position + 1] = chance.randbytes(1)
    return bytes(content)


def check_letters(stage: Stage, seed: int) -> None:
    """One video whose worker sends one to three letters, then ends; and one whose worker behaves."""
    chance = Random(seed)
    spans = chance.choice([None, None, (), ((0, 5), (9, 12))])
    worker, number = stage.begin(f"hostile{seed}", spans)
    for _ in range(chance.randrange(1, 4)):
        say(worker, letter(chance, number))
        if chance.random() < 0.3:
            stage.step()
    stage.step()
    if f"hostile{seed}" not in stage.ends:
        worker.die()
        stage.step()
    outcome = stage.ends.pop(f"hostile{seed}").outcome
    outcome.reason.encode()
    assert 0 <= outcome.num_frames <= 10_000
    assert (outcome.num_frames > 0) == (outcome.status != "failed")
    assert all(0 <= (count or 0) < 1 << 53 for count in (outcome.decoder_errors, outcome.declared_frames))
    stage.check_neighbour("good")
    del stage.ends["good"]
    assert not stage.ends, "another video was ended"


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr("extract.decode.supervisor.WorkerProcess", PlayedWorker)
    stage = Stage()
    yield stage
    stage.supervisor.stop()
    stage.supervisor.run()


@pytest.mark.parametrize("count", [200, pytest.param(50_000, marks=pytest.mark.slow)])
def test_messages_cost_at_most_their_video(stage: Stage, count: int) -> None:
    for seed in seeds(count):
        with replayable(seed):
            check_letters(stage, seed)


def test_a_worker_that_does_not_read_costs_its_video(stage: Stage) -> None:
    worker, number = stage.begin("hostile")
    for index in range(2_000):
        say(worker, json.dumps(FILLED | {"video": number, "first": index, "pts": [float(index)]}).encode())
        stage.step()
        stage.step()  # the block comes, then its memory is free again
        if "hostile" in stage.ends:
            break
    assert stage.ends["hostile"].outcome.reason == "decoder does not read what it is sent"
    stage.check_neighbour("good")


def test_a_second_end_is_not_that_of_the_next_video(stage: Stage) -> None:
    worker, number = stage.begin("hostile")
    stage.supervisor.add(VideoRequest("next", Path("next")))
    for _ in range(2):
        say(worker, json.dumps(ENDED | {"video": number, "status": "failed", "reason": "no"}).encode())
        stage.step()
    stage.step()
    assert stage.ends.keys() == {"hostile"}
    worker = stage.worker()
    assert worker is not None, "the next video waits for another one"
    assert worker.current is None or not worker.current.begun


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*FILLED, *ENDED]), inner),
    max_leaves=8,
)


@settings(max_examples=50)
@given(JSON)
def test_what_is_no_message_raises(value: Any) -> None:
    with suppress(*MESSAGE_ERRORS):
        assert isinstance(parse(json.dumps(value).encode()), msgspec.Struct)
