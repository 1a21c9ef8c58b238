"""Thousands of damaged files, children killed at random, very many and very long videos: it goes on, nothing grows."""

import contextlib
import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from extract.decode import DecodePool, DecodeSettings, FrameBlock, Limits
from tests.helpers.damage import damage, encode_sources
from tests.helpers.decoding import decode_here, pixels_digest, receive
from tests.helpers.processes import children, open_descriptors, resident_bytes
from tests.helpers.seeds import replayable, seeds
from tests.helpers.video import encode

LIMITS = Limits(stall_seconds=10.0, memory_bytes=1 << 30)


def check_damaged_files(folder: Path, count: int, decoder: str, kills: int, seed: int) -> None:
    """Decode `count` files, nine damaged ones to a healthy one; all must come out, the healthy ones unharmed.

    About `kills` times, at random, a worker is killed by somebody else. `seed` draws damage and kills.
    """
    sources = encode_sources(folder)
    digests = {source.suffix: pixels_digest(decode_here(source).frames_FHW3) for source in sources}
    expected: list[str] = []
    killed: list[int] = []
    chance = random.Random(seed)

    def videos() -> Iterator[tuple[str, Path]]:
        for number in range(count):
            if chance.random() < kills / count and (workers := children()):
                victim = chance.choice(workers)
                with contextlib.suppress(ProcessLookupError):  # it may have ended since it was listed
                    os.kill(victim, signal.SIGKILL)
                    killed.append(victim)
            source = sources[number % len(sources)]
            if number % 10 == 9:
                expected.append(f"healthy{number}{source.suffix}")
                yield expected[-1], source
            else:
                path = damage(source, seed * 1_000_000 + number, folder)
                expected.append(path.name)
                yield path.name, path

    with DecodePool(DecodeSettings(decoder=decoder, workers=2, limits=LIMITS)) as pool:
        received = receive(pool, videos())
    assert bool(killed) == bool(kills)
    assert sorted(received) == sorted(expected)
    outcomes = {name: video.outcome for name, video in received.items() if video.outcome is not None}
    assert len(outcomes) == count
    blamed = [name for name, outcome in outcomes.items() if "killed from outside" in outcome.reason]
    assert len(blamed) <= len(killed)
    healthy = [name for name in expected if name.startswith("healthy") and name not in blamed]
    if decoder == "pyav":
        assert {outcomes[name].status for name in healthy} == {"done"}
        assert all(received[name].pixels.hexdigest() == digests[Path(name).suffix] for name in healthy)
    statuses = Counter(outcome.status for name, outcome in outcomes.items() if name.startswith("damaged"))
    assert set(statuses) == {"done", "suspect", "failed"}, statuses
    assert all(outcome.reason for outcome in outcomes.values() if outcome.status != "done")
    assert children() == []


@pytest.mark.parametrize(("count", "kills"), [(500, 0), pytest.param(2_000, 5, marks=pytest.mark.slow)])
def test_damaged_files_each_have_an_outcome(tmp_path: Path, count: int, kills: int) -> None:
    for seed in seeds(1):
        with replayable(seed):
            check_damaged_files(tmp_path, count, "pyav", kills, seed)


@pytest.mark.slow
@pytest.mark.parametrize(("decoder", "count"), [("pyav", 20_000), ("decord", 2_000)])
@pytest.mark.parametrize("kills", [0, 100])
def test_very_many_damaged_files(tmp_path: Path, decoder: str, count: int, kills: int) -> None:
    for seed in seeds(1):
        with replayable(seed):
            check_damaged_files(tmp_path, count, decoder, kills, seed)


@dataclass(frozen=True)
class Held:
    """What a run holds at one moment."""

    descriptors: int
    workers: int
    supervisor_bytes: int
    worker_bytes: int

    @classmethod
    def now(cls) -> "Held":
        workers = children()
        largest = max((resident_bytes(pid) for pid in workers), default=0)
        return cls(open_descriptors(), len(workers), resident_bytes(), largest)


def check_many_videos(folder: Path, count: int, videos_per_worker: int) -> None:
    """Decode `count` short videos in one run: what it holds in its last quarter is what it held in its first half."""
    video = encode(folder / "short.mp4", 6)
    settings = DecodeSettings(workers=2, videos_per_worker=videos_per_worker)
    held: list[Held] = []
    temporary = sorted(Path("/dev/shm").iterdir())
    with DecodePool(settings) as pool:
        ended = 0
        for item in pool.decode((str(number), video) for number in range(count)):
            if isinstance(item, FrameBlock):
                item.release()
                continue
            assert item.outcome.status == "done"
            ended += 1
            if ended % (count // 100) == 0:
                held.append(Held.now())
    early, late = held[10:50], held[75:]
    # While a worker takes another's place there are the descriptors of both; what leaks is never given back.
    assert min(each.descriptors for each in late) <= max(each.descriptors for each in early)
    assert max(each.workers for each in late) <= 2 + 1
    for which in ("supervisor_bytes", "worker_bytes"):
        growth = max(getattr(each, which) for each in late) - max(getattr(each, which) for each in early)
        assert growth < 4 << 20, which
    assert sorted(Path("/dev/shm").iterdir()) == temporary
    assert children() == []


def test_many_short_videos_leave_nothing_behind(tmp_path: Path) -> None:
    check_many_videos(tmp_path, 200, videos_per_worker=40)


@pytest.mark.slow
@pytest.mark.parametrize("videos_per_worker", [1000, 1_000_000])
def test_twenty_thousand_short_videos_leave_nothing_behind(tmp_path: Path, videos_per_worker: int) -> None:
    check_many_videos(tmp_path, 20_000, videos_per_worker)


@pytest.mark.slow
def test_a_long_film_streams_in_constant_memory(tmp_path: Path) -> None:
    film = encode(tmp_path / "film.avi", 60_000, size=(120, 160))
    memory: list[int] = []
    with DecodePool(DecodeSettings(workers=1)) as pool:
        for item in pool.decode([("film", film)]):
            if isinstance(item, FrameBlock):
                memory += [resident_bytes(pid) for pid in children()]
                item.release()
            else:
                assert (item.outcome.status, item.outcome.num_frames) == ("done", 60_000)
    assert max(memory[len(memory) // 2 :]) - max(memory[: len(memory) // 4]) < 4 << 20
