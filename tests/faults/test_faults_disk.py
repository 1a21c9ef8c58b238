"""A disk that refuses: full, over quota or failing, at every operation of a commit."""

import errno
from pathlib import Path

import pytest

from cache.store import FeatureCache
from cache.verify import verify
from tests.helpers.faults import Control, Server, assert_sound, serving

REFUSALS = {"full": errno.ENOSPC, "failing": errno.EIO, "over quota": errno.EDQUOT}
PART = 20
"""Operations tried on one cache; each attempt reads the whole cache, so a larger one would cost ever more."""
FOR_LONG = 10_000
"""Operations after the first refused one that are refused too: a full disk stays full until somebody frees space."""


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.parametrize(
    ("backend", "every"),
    [
        pytest.param("h5", 23, id="h5, some"),
        pytest.param("zarr", 131, id="zarr, some"),
        pytest.param("h5", 1, id="h5, each", marks=pytest.mark.slow),
        pytest.param("zarr", 1, id="zarr, each", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("lasting", [0, FOR_LONG], ids=["once", "for long"])
def test_a_refusal_at_each_operation_is_a_clean_error(tmp_path: Path, backend: str, every: int, lasting: int) -> None:
    """The extraction ends with exit code 1 or mends it; what was committed stays; the next one continues."""
    control = Control(tmp_path)
    below = tmp_path / "below"
    below.mkdir()
    with serving(control) as server:
        server.run("create", cache=below / "measured", backend=backend, videos=2)
        control.watch(below)
        assert server.run("extract", cache=below / "measured", acknowledged=tmp_path / "x", videos=2) == 0
        points = range(0, control.counter, every)
        control.disarm()
        reached = 0
        for start in range(0, len(points), PART):
            cache = below / f"cache{start}"
            some = points[start : start + PART]
            server.run("create", cache=cache, backend=backend, videos=2 * 3 * len(some) * 2)
            reached += refuse_each(server, control, cache, some, lasting)
            finish(server, cache, tmp_path / f"{cache.name}-acknowledged")
    print(f"{backend}: {reached} of {3 * len(points)} refusals of {len(points)} operations reached")
    assert reached >= 0.9 * 3 * len(points), f"only {reached} of {3 * len(points)} operations were reached"


def refuse_each(server: Server, control: Control, cache: Path, points: range, lasting: int) -> int:
    """One extraction for each operation and way to be refused; how many of the refusals took place."""
    acknowledged = cache.parent.parent / f"{cache.name}-acknowledged"
    reached = before = 0
    for number in points:
        for name, error in REFUSALS.items():
            control.arm(number, error, lasting)
            code = server.run("extract", cache=cache, acknowledged=acknowledged, videos=2, commits=1)
            reached += control.fired > 0
            control.disarm()
            assert code in (0, 1), f"operation {number} ({control.kind}), disk {name}: exit code {code}"
            # What is refused after the commit, while the ledger is closed, costs nothing: its log is on the disk.
            promised = lines(acknowledged)
            assert len(promised) - before == (2 if code == 0 else 0), f"operation {number}, disk {name}"
            before = len(promised)
            assert_sound(cache, set(promised))
    return reached


def finish(server: Server, cache: Path, acknowledged: Path) -> None:
    """Space is back: the same command completes the cache."""
    assert server.run("extract", cache=cache, acknowledged=acknowledged, videos=100) == 0
    with FeatureCache.open(cache) as opened:
        opened.require_finished()
    assert verify(cache) == []
