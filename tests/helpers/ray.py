"""A Ray cluster of four nodes on this machine, and its processes."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
STORE_BYTES = 100 << 20


class FourNodes:
    """A head without CPUs and four nodes with one each. Nodes can be taken away, as by a power cut, and come back."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        head = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._nodes = [self._new() for _ in range(4)]
        self.environment = {**os.environ, "RAY_ADDRESS": self._cluster.address, "PYTHONPATH": str(ROOT)}

    def _new(self) -> Any:
        return self._cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)

    def lose_node(self, number: int) -> None:
        """Kill everything on a node at once."""
        self._cluster.remove_node(self._nodes.pop(number), allow_graceful=False)

    def restore(self) -> None:
        """Four nodes again."""
        while len(self._nodes) < 4:
            self._nodes.append(self._new())

    def close(self) -> None:
        """End all of it."""
        self._cluster.shutdown()

    @contextmanager
    def extracting(self, work: Path, *options: str) -> Iterator["subprocess.Popen[str]"]:
        """`python -m extract --engine ray` as a process; killed when left."""
        process = subprocess.Popen(
            [sys.executable, "-m", "extract", "--engine", "ray", "--work", str(work), *options],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def extract(self, work: Path, *options: str, seconds: float = 1200.0) -> tuple[int, str]:
        """The same to its end: exit code and what it said."""
        with self.extracting(work, *options) as process:
            said, _ = process.communicate(timeout=seconds)
        return process.returncode, said


def needs_ray() -> None:
    """Skip the module where Ray is not installed."""
    pytest.importorskip("ray", reason="needs Ray: pip install 'mrrn[ray]'")


def workers() -> Mapping[int, str]:
    """Process ids of the pool's actors, with the command line that Ray gives them."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "cmdline").read_bytes().rstrip(b"\0").decode(errors="replace")
        except OSError:
            continue
        if name.startswith("ray::ExtractWorker"):
            found[int(folder.name)] = name
    return found


def worker_with_open(path: Path) -> int | None:
    """The pool's actor whose decoder has `path`, or a file below it, open."""
    target, pool = str(path.resolve()), workers()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"extract.decode.worker" not in (folder / "cmdline").read_bytes():
                continue
            if any(f"{link.readlink()}/".startswith(f"{target}/") for link in (folder / "fd").iterdir()):
                parent = int((folder / "cmdline").read_bytes().split(b"\0")[-2])
                # The driver also opens some, to see how long videos are.
                return parent if parent in pool else None
        except OSError:
            continue
    return None


def wait_for(found: Any, seconds: float = 300.0) -> Any:
    """The first true value of `found()`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := found():
            return value
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")
