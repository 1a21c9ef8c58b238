"""Processes killed while they write: at random moments, and at each system call of a commit."""

import random
import time
from pathlib import Path

import pytest

from cache.store import FeatureCache
from cache.verify import verify
from tests.helpers.faults import Control, Server, assert_sound, kill, replayed_by, seed_of, serving


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def finish(server: Server, cache: Path, acknowledged: Path) -> None:
    """Complete the extraction undisturbed, and look at all of it."""
    assert server.run("extract", cache=cache, acknowledged=acknowledged, videos=50) == 0
    with FeatureCache.open(cache) as opened:
        opened.require_finished()
        wanted = {video.id for video in opened.dataset.videos}
    assert assert_sound(cache, wanted) == wanted
    assert len(lines(acknowledged)) == len(set(lines(acknowledged))), "a video was acknowledged twice"
    assert all(finding.harmless for finding in verify(cache))


def kill_at_random(server: Server, folder: Path, backend: str, kills: int, seconds: float, seed: int) -> int:
    """Kill `kills` extractions of one cache at random moments of their first `seconds`; how many were in the middle."""
    seed = seed_of(seed)
    chance = random.Random(seed)
    cache, acknowledged = folder / "cache", folder / "acknowledged"
    # Some are left at the last kill, also on a machine that commits a hundred shards of two videos a second.
    videos = kills * max(40, round(200 * seconds))
    assert server.run("create", cache=cache, backend=backend, videos=videos) == 0
    interrupted = 0
    with replayed_by(FAULTS_SEED=seed):
        for number in range(kills):
            worker = server.start("extract", cache=cache, acknowledged=acknowledged, videos=2)
            time.sleep(chance.uniform(0, seconds))
            kill(worker)
            code = server.wait(worker)
            assert code in (-9, 0), f"exit code {code}"
            interrupted += code == -9
            if number % 10 == 9:
                assert_sound(cache, set(lines(acknowledged)))
        finish(server, cache, acknowledged)
    return interrupted


@pytest.mark.parametrize(("backend", "kills"), [("h5", 40), ("zarr", 25)])
def test_random_kills_lose_nothing(tmp_path: Path, backend: str, kills: int) -> None:
    with serving() as server:
        assert kill_at_random(server, tmp_path, backend, kills, seconds=0.06, seed=kills) == kills


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "kills"), [("h5", 700), ("zarr", 300)])
def test_a_thousand_random_kills_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, kills: int
) -> None:
    """With the writing child as it really is, a new interpreter each time."""
    monkeypatch.setenv("REAL_WRITER", "1")
    interrupted = 0
    with serving() as server:
        for part in range(kills // 50):
            folder = tmp_path / str(part)
            folder.mkdir()
            interrupted += kill_at_random(server, folder, backend, 50, seconds=1.0, seed=part)
    assert interrupted == kills


def operations_of_a_commit(server: Server, control: Control, folder: Path, backend: str) -> int:
    """How many system calls below the cache an extraction with one commit makes, from opening to closing."""
    cache = folder / "measured"
    server.run("create", cache=cache, backend=backend, videos=4)
    control.watch(folder)
    assert server.run("extract", cache=cache, acknowledged=folder / "measured-ack", videos=2, commits=1) == 0
    return control.counter


@pytest.mark.parametrize(
    ("backend", "every"),
    [
        pytest.param("h5", 6, id="h5, every sixth"),
        pytest.param("h5", 1, id="h5, each", marks=pytest.mark.slow),
        pytest.param("zarr", 1, id="zarr, each", marks=pytest.mark.slow),
    ],
)
def test_a_kill_at_each_system_call_loses_nothing(tmp_path: Path, backend: str, every: int) -> None:
    """Whichever process makes the call dies: the extraction, or its writing child, which is an error for the former."""
    control = Control(tmp_path)
    cache, acknowledged = tmp_path / "below" / "cache", tmp_path / "acknowledged"
    cache.parent.mkdir()
    with serving(control) as server:
        total = operations_of_a_commit(server, control, cache.parent, backend)
        points = range(0, total, every)
        control.disarm()
        server.run("create", cache=cache, backend=backend, videos=4 * len(points))
        deaths = 0
        for number in points:
            control.arm(number, error=0)
            code = server.run("extract", cache=cache, acknowledged=acknowledged, videos=2, commits=1)
            deaths += control.fired > 0
            what = f"killed at call {number} of {total} ({control.kind})"
            control.disarm()
            assert code in (0, 1, -9), what
            try:
                assert_sound(cache, set(lines(acknowledged)))
            except BaseException as error:
                error.add_note(what)
                raise
        finish(server, cache, acknowledged)
    assert deaths >= 0.9 * len(points), f"only {deaths} of {len(points)} calls were reached"
