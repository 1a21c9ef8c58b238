"""The power goes: what was synced is there, the rest is there or not or in part. Replayed from a recorded trace."""

import ast
import json
import random
import shutil
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from zipfile import BadZipFile, ZipFile

import pytest

from cache.common.errors import MrrnError
from cache.fingerprint import LEVELS
from cache.shards import BACKENDS
from cache.store import FeatureCache
from cache.verify import verify
from tests.helpers.faults import Control, assert_sound, serving
from tests.helpers.replay import ROOT, Change, Disk, read_trace

VIDEOS, VIDEOS_A_COMMIT = 12, 3
CACHE = PurePosixPath("work/cache/toy")
"""Below what is watched; the folders above it are made with it."""
FEATURES, BUNDLE = PurePosixPath("features"), PurePosixPath("bundle")
"""An export of the cache, and a folder that is replaced as a whole."""


@dataclass(frozen=True)
class Trace:
    """What happened while a cache was made and filled."""

    root: PurePosixPath
    changes: list[Change]
    """With what was promised when."""

    def without(self, site: str) -> "tuple[Trace, list[int]]":
        """The same without the syncs of one line of code, and the numbers of the changes that they were before."""
        kept, places = [], []
        for change in self.changes:
            if change.kind == "s" and site_of(change) == site:
                places.append(len(kept))
            else:
                kept.append(change)
        return Trace(self.root, kept), places


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trace]:
    """Of each format."""
    return {backend: record(tmp_path_factory.mktemp(backend), backend) for backend in BACKENDS}


@pytest.fixture(params=BACKENDS)
def trace(request: pytest.FixtureRequest, traces: dict[str, Trace]) -> Trace:
    return traces[request.param]


def record(folder: Path, backend: str) -> Trace:
    """A cache is made; an extraction is killed between a shard's rename and its sync; another one finishes; export."""
    control = Control(folder)
    root = folder / "below"
    root.mkdir()
    control.watch(root, trace=True)
    cache, trace = root / CACHE, control.trace_path
    with serving(control) as server:
        assert server.run("create_acknowledged", cache=cache, trace=trace, backend=backend, videos=VIDEOS) == 0
        assert server.run("extract_and_die", cache=cache, videos=VIDEOS_A_COMMIT) == 9
        assert server.run("extract_acknowledged", cache=cache, trace=trace, videos=VIDEOS_A_COMMIT) == 0
        if backend == "h5":  # what is handed out does not depend on the format
            places = {"cache": cache, "features": root / FEATURES, "folder": root / BUNDLE}
            assert server.run("hand_out_acknowledged", **places, trace=trace) == 0
    return Trace(PurePosixPath(root), read_trace(trace))


def what_breaks(
    trace: Trace, target: Path, moments: list[int], chance: random.Random, first: bool = False
) -> Counter[str]:
    """Crash at these moments, and count the broken promises, in words; up to the `first` if asked."""
    disk, promised, broken, done_until = Disk(trace.root), Promises(), Counter[str](), 0
    for moment in sorted(moments):
        for change in trace.changes[done_until:moment]:
            promised.note(change) if change.kind == "A" else disk.apply(change)
        done_until = moment
        disk.crash(target, chance)
        broken[promised.broken(target)] += 1
        shutil.rmtree(target)
        if first and set(broken) != {""}:
            break
    del broken[""]
    return broken


class Promises:
    """What was acknowledged before the crash."""

    def __init__(self) -> None:
        self.created = self.exported = self.replaced = False
        self.videos: set[str] = set()
        self.failed: set[str] = set()

    def note(self, change: Change) -> None:
        what = json.loads(str(change.path))
        self.created |= "created" in what
        self.exported |= "exported" in what
        self.replaced |= "replaced" in what
        self.videos |= set(what.get("videos", []))
        self.failed |= set(what.get("failed", []))

    def broken(self, root: Path) -> str:
        """In words, what of it does not hold below the folder that was found; empty where all does."""
        return self._broken_copy(root) or self._broken_cache(root / CACHE)

    def _broken_copy(self, root: Path) -> str:
        """The same of what was handed out: it is complete as soon as it has its name."""
        features, bundle = root / FEATURES, root / BUNDLE
        if self.exported > features.exists() or self.replaced > bundle.exists():
            return "what was handed out is gone"
        try:
            if features.exists() and not all(_is_whole(features / f"{level}.npz") for level in LEVELS):
                return "the export is not whole"
            return "the bundle is not whole" if bundle.exists() and (bundle / "heads").read_bytes() != b"new" else ""
        except FileNotFoundError:
            return "a file that was handed out is gone"

    def _broken_cache(self, cache: Path) -> str:
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


def _is_whole(archive: Path) -> bool:
    """Whether a zip file's checksums fit."""
    try:
        with ZipFile(archive) as opened:
            return opened.testzip() is None
    except (BadZipFile, zlib.error):
        return False


@pytest.mark.parametrize(
    "states", [pytest.param(40, id="40 states"), pytest.param(1000, id="1,000 states", marks=pytest.mark.slow)]
)
def test_a_power_cut_breaks_no_promise(trace: Trace, tmp_path: Path, states: int) -> None:
    chance = random.Random(1)
    assert what_breaks(trace, tmp_path / "state", any_time(trace, states, chance), chance) == {}


def any_time(trace: Trace, states: int, chance: random.Random) -> list[int]:
    """Moments drawn from all there are."""
    return [chance.randrange(len(trace.changes) + 1) for _ in range(states)]


OF_SQLITES_LOG = "cache/sqlite.py: synchronous = FULL"


def site_of(change: Change) -> str:
    """The line of code that a sync comes from; empty where SQLite makes it on its own account."""
    return change.site or (OF_SQLITES_LOG if change.path.name.endswith("-wal") else "")


def sites_in_code() -> set[str]:
    """Each line of cache/ that asks for a sync.

    Not those of repair, which neither makes caches nor adds to them, nor of a published folder: that is a copy, whose
    index is compared with every byte, and the same command writes again what is missing.
    """
    found = {OF_SQLITES_LOG}
    for file in (ROOT / "cache").rglob("*.py"):
        if file.name in ("repair.py", "quarantine.py") or file.match("remote/folder.py"):
            continue
        for function in ast.walk(ast.parse(file.read_text())):
            if isinstance(function, ast.FunctionDef) and function.name != "fsync_folder":
                calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
                lines = [call.lineno for call in calls if "sync" in ast.unparse(call.func)]
                found |= {f"{file.relative_to(ROOT)}:{line}" for line in lines}
    return found


def test_every_line_that_syncs_is_in_a_trace(traces: dict[str, Trace]) -> None:
    recorded = {site_of(change) for trace in traces.values() for change in trace.changes if change.kind == "s"}
    assert recorded - {""} == sites_in_code()


def soon_after(places: list[int], chance: random.Random) -> list[int]:
    """Moments soon after syncs that were left out; later ones may make the same thing safe."""
    return [chance.choice(places) + chance.randrange(100) for _ in range(100)]


@pytest.mark.parametrize(
    "states", [pytest.param(100, id="100 states"), pytest.param(1000, id="1,000 states", marks=pytest.mark.slow)]
)
def test_no_line_that_syncs_can_be_left_out(trace: Trace, tmp_path: Path, states: int) -> None:
    """Without the syncs of any one line, as if it were taken out of the code, promises are broken.

    The full form crashes at the same moments as the full form of the first test, which would therefore fail.
    """
    sites = {site_of(change) for change in trace.changes if change.kind == "s"} - {""}
    needless = []
    for site in sorted(sites):
        left, places = trace.without(site)
        chance = random.Random(1)
        moments = soon_after(places, chance) if states == 100 else any_time(left, states, chance)
        if not what_breaks(left, tmp_path / "state", moments, chance, first=True):
            needless.append(site)
    assert needless == [], f"of {sorted(sites)}"
