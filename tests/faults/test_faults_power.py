"""The power goes: what was synced is there, the rest is there or not or in part. Replayed from a recorded trace."""

import json
import random
import shutil
from collections import Counter
from pathlib import Path, PurePosixPath

import pytest
from helpers_faults import Control, assert_sound, serving
from helpers_replay import Change, Disk, read_trace

from cache.errors import MrrnError
from cache.shards import BACKENDS
from cache.store import FeatureCache
from cache.verify import verify

VIDEOS, VIDEOS_A_COMMIT = 12, 3


@pytest.fixture(scope="module", params=BACKENDS)
def trace(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PurePosixPath, list[Change]]:
    """Where a cache was made and filled, and every change on the way, with what was promised when."""
    folder = tmp_path_factory.mktemp(request.param)
    control = Control(folder)
    root = folder / "below"
    root.mkdir()
    control.watch(root, trace=True)
    with serving(control) as server:
        arguments = {"cache": root / "cache", "trace": control.trace_path}
        assert server.run("create_acknowledged", backend=request.param, videos=VIDEOS, **arguments) == 0
        assert server.run("extract_acknowledged", videos=VIDEOS_A_COMMIT, **arguments) == 0
    return PurePosixPath(root), read_trace(control.trace_path)


def what_breaks(
    root: PurePosixPath, changes: list[Change], target: Path, states: int, seed: int, first: bool = False
) -> Counter[str]:
    """Crash `states` times at random moments, and count the broken promises, in words; up to the `first` if asked."""
    chance = random.Random(seed)
    moments = sorted(chance.randrange(len(changes) + 1) for _ in range(states))
    disk, promised, broken, done_until = Disk(root), Promises(), Counter[str](), 0
    for moment in moments:
        for change in changes[done_until:moment]:
            promised.note(change) if change.kind == "A" else disk.apply(change)
        done_until = moment
        disk.crash(target, chance)
        broken[promised.broken(target / "cache")] += 1
        shutil.rmtree(target)
        if first and set(broken) != {""}:
            break
    del broken[""]
    return broken


class Promises:
    """What was acknowledged before the crash."""

    def __init__(self) -> None:
        self.created = False
        self.videos: set[str] = set()
        self.failed: set[str] = set()

    def note(self, change: Change) -> None:
        what = json.loads(str(change.path))
        self.created |= "created" in what
        self.videos |= set(what.get("videos", []))
        self.failed |= set(what.get("failed", []))

    def broken(self, cache: Path) -> str:
        """In words, what of it does not hold in the cache that was found; empty where all does."""
        if not cache.exists():
            return "the cache is gone" if self.created else ""
        readme = cache / "README.txt"
        if not (readme.exists() and readme.read_text(errors="replace").endswith("is removed.\n")):
            return "README.txt is not whole"
        try:
            assert_sound(cache, self.videos)
            with FeatureCache.open(cache) as opened:
                if not self.failed <= {outcome.video_id for outcome in opened.ledger.outcomes("failed")}:
                    return "it was forgotten which videos failed"
        except AssertionError as error:
            return str(error).split(":")[0]
        except MrrnError as error:
            return type(error).__name__
        return "verify finds damage" if verify(cache) else ""


@pytest.mark.parametrize(
    "states", [pytest.param(60, id="60 states"), pytest.param(1000, id="1,000 states", marks=pytest.mark.slow)]
)
def test_a_power_cut_breaks_no_promise(trace: tuple[PurePosixPath, list[Change]], tmp_path: Path, states: int) -> None:
    assert what_breaks(*trace, tmp_path / "state", states, seed=1) == {}


def kind_of_sync(root: PurePosixPath, change: Change) -> str:
    """Which line of code a sync comes from, told by what it makes safe."""
    parts = change.path.relative_to(root).parts
    if not parts:
        return "folder of caches, once the cache has its name"
    making = parts[0] != "cache"
    if len(parts) == 1:
        return "folder of a cache that is being made" if making else "folder of a cache"
    if parts[1] != "shards":
        return parts[1].split("-")[-1] + (" that is being made" if making else "")
    if len(parts) == 2:
        return "folder of shards"
    return "file of a shard" if len(parts) == 3 or "." in parts[-1] or parts[-1].isdigit() else "folder in a shard"


OF_SQLITE = {
    "folder of a cache",
    "journal that is being made",
    "ledger.sqlite",
    "ledger.sqlite that is being made",
    "wal that is being made",
}
"""Syncs that SQLite makes on its own account. That of its log ("wal") is ours to ask for, by synchronous=FULL."""


def test_every_sync_is_needed(trace: tuple[PurePosixPath, list[Change]], tmp_path: Path) -> None:
    """Without any one kind of sync in the trace, as if its line were taken out of the code, promises are broken."""
    root, changes = trace
    kinds = {kind_of_sync(root, change) for change in changes if change.kind == "s"} - OF_SQLITE
    assert len(kinds) >= 8
    needless = []
    for kind in sorted(kinds):
        without = [change for change in changes if change.kind != "s" or kind_of_sync(root, change) != kind]
        if not what_breaks(root, without, tmp_path / "state", states=150, seed=2, first=True):
            needless.append(kind)
    assert needless == [], f"of {sorted(kinds)}"
