"""What the system refuses to read now is told with its path; it is never taken for damage, and nothing is moved."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import cache.common.files as files
from cache.commit import recover
from cache.common.errors import UnreadableError
from cache.repair import repair
from cache.shards import BACKENDS
from cache.shards.protocol import ShardIndex
from cache.store import FeatureCache
from cache.verify import verify
from tests.helpers.cache import filled_cache

REFUSALS = ("EACCES", "EPERM", "EMFILE", "ENFILE", "EIO", "ESTALE", "ENOMEM", "EINTR")

LIMITED = """
import resource, sys
from pathlib import Path
from cache.common.errors import MrrnError
from cache.repair import repair
from cache.store import FeatureCache
from cache.verify import verify
import cache.shards.hdf5, cache.shards.zarr, multiprocessing.connection, concurrent.futures.thread
for number in (1, 2):
    verify(Path(sys.argv[1]))
low = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (low, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
for command in (verify, repair):
    try:
        found = command(Path(sys.argv[1]))
    except (MrrnError, OSError) as error:
        print(type(error).__name__, error)
    else:
        assert not found, found
"""


def contents(cache: Path) -> dict[str, bytes]:
    """Everything that a repair might move; SQLite's own files come and go."""
    paths = [path for path in cache.rglob("*") if path.is_file() and not path.name.startswith("ledger.sqlite-")]
    return {str(path.relative_to(cache)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", REFUSALS)
@pytest.mark.parametrize("what", ["shard", "ledger.sqlite", "dataset.json", "cache.json"])
def test_a_file_that_cannot_be_opened_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, kind: str, backend: str
) -> None:
    path = filled_cache(tmp_path / "c", 9, backend=backend).path
    before, number, opened = contents(path), getattr(errno, kind), os.open
    hit = "shards/000001-" if what == "shard" else what

    def refuse(name, *more, **options):
        if hit in str(name):
            raise OSError(number, os.strerror(number), str(name))
        return opened(name, *more, **options)

    monkeypatch.setattr(os, "open", refuse)
    if what == "ledger.sqlite":
        # SQLite opens its file itself; what is asked of the system beforehand is refused.
        lstat = Path.lstat
        monkeypatch.setattr(Path, "lstat", lambda self: refuse(self) if hit in str(self) else lstat(self))
    for command in (verify, repair):
        with pytest.raises(UnreadableError, match=rf"{hit}.*{os.strerror(number)}"):
            command(path)
    monkeypatch.undo()
    assert contents(path) == before
    assert verify(path) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_disk_that_refuses_in_the_middle_of_a_shard_is_not_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    path = filled_cache(tmp_path / "c", 9, backend=backend).path
    before = contents(path)

    def refuse(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(files.os, "preadv", refuse)
    for command in (verify, repair):
        with pytest.raises(UnreadableError, match=r"shards/00000"):
            command(path)
    monkeypatch.undo()
    assert contents(path) == before


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("can't start new thread"), OSError("can't open file (memory allocation failed)")],
    ids=["memory", "thread", "hdf5"],
)
def test_a_lack_of_memory_is_not_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, error: Exception
) -> None:
    path = filled_cache(tmp_path / "c", 9, backend=backend).path
    before = contents(path)

    def refuse(*_):
        raise error

    monkeypatch.setattr(ShardIndex, "check", refuse)
    for command in (verify, repair):
        with pytest.raises(UnreadableError, match="not enough memory"):
            command(path)
    monkeypatch.undo()
    assert contents(path) == before


LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
from cache.cli import main
import cache.verify, cache.repair, cache.shards.hdf5, cache.shards.zarr
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (int(sys.argv[1]) << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.argv[1:2] = []
main()
"""


@pytest.mark.parametrize(
    ("backend", "command", "mebibytes"),
    [
        ("zarr", "repair", 16),
        *(
            pytest.param(backend, command, more, marks=pytest.mark.slow)
            for backend in BACKENDS
            for command in ("info", "verify", "repair")
            for more in range(0, 132, 12)
        ),
    ],
)
def test_little_memory_ends_with_a_message(tmp_path: Path, backend: str, command: str, mebibytes: int) -> None:
    """Neither a hang nor a finding; with enough memory, success."""
    path = filled_cache(tmp_path / "c", 9, backend=backend).path
    before = contents(path)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    arguments = [sys.executable, "-c", LITTLE_MEMORY, str(mebibytes), command, str(path)]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0 or (done.returncode == 1 and "error: " in done.stderr), done
    assert "not as they were written" not in done.stderr
    assert contents(path) == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_shard_without_a_row_that_cannot_be_read_now_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    path = filled_cache(tmp_path / "c", 9, backend=backend).path
    with FeatureCache.open(path) as cache, cache.ledger.transaction() as connection:
        cache.ledger.forget_shard(connection, 1)
    opened = os.open

    def refuse(name, *more, **options):
        if "shards/000001-" in str(name):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(name))
        return opened(name, *more, **options)

    monkeypatch.setattr(os, "open", refuse)
    before = contents(path)
    with FeatureCache.open(path) as cache, pytest.raises(UnreadableError):
        recover(cache.storage)
    with pytest.raises(UnreadableError):
        repair(path)
    monkeypatch.undo()
    assert contents(path) == before
    assert [line for line in repair(path) if line.startswith("adopted")]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "limit", [4, 8, 12, *(pytest.param(each, marks=pytest.mark.slow) for each in (6, 10, 14, 17, 20))]
)
def test_few_open_files_cost_no_shard(tmp_path: Path, limit: int, backend: str) -> None:
    path = filled_cache(tmp_path / "c", 9, backend=backend).path
    before = contents(path)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path), str(limit)], capture_output=True, text=True, env=environment
    )
    assert contents(path) == before, done.stdout + done.stderr
    assert verify(path) == []
    assert limit > 8 or "rror" in done.stdout + done.stderr
