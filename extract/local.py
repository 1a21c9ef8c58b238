"""Several devices on one machine: a process for each, which share the cache by leases as strangers would."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Final

from cache.common.console import progress
from cache.common.errors import MrrnError
from cache.common.workspace import Workspace
from cache.store import FeatureCache
from extract.decode import Limits

LOOK_EVERY_SECONDS: Final = 1.0


def work_on(
    devices: Sequence[str],
    cache: FeatureCache,
    workspace: Workspace,
    limits: Limits,
    *,
    jobs: int | None,
    allow_drift: bool,
) -> None:
    """Extract what is pending in `cache` with one process on each of `devices`; returns when no video is left.

    A process that dies leaves its videos to the others. MrrnError where some are left and nobody works on them.
    """
    cores = len(os.sched_getaffinity(0))
    command = [sys.executable, "-m", "extract", "--worker", "--work", str(workspace.root), "--dataset", cache.path.name]
    command += ["--jobs", str(max(1, (jobs or cores) // len(devices)))]
    command += [f"--limit={name}={value}" for name, value in asdict(limits).items()]
    command += ["--allow-drift"] if allow_drift else []
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, cores // len(devices)))}
    with ExitStack() as stack:
        workers = [
            stack.enter_context(subprocess.Popen([*command, "--device", device], env=environment)) for device in devices
        ]
        stack.callback(_stop, workers)
        _watch(cache, workers)
    codes = dict(zip(devices, (worker.returncode for worker in workers), strict=True))
    if left := cache.ledger.counts()["pending"]:
        ended = ", ".join(f"{device} ended with {code}" for device, code in codes.items() if code)
        raise MrrnError(f"{left} videos are not extracted: {ended}; the reasons stand above. The same command goes on")


def _watch(cache: FeatureCache, workers: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Show how far the workers are until all have ended."""
    counts = cache.ledger.counts()
    pending, failed_before = counts["pending"], counts["failed"]
    with progress("extract", pending, "videos") as bar:
        while any(worker.poll() is None for worker in workers):
            time.sleep(LOOK_EVERY_SECONDS)
            counts = cache.ledger.counts()
            failed = counts["failed"] - failed_before
            bar.update(pending - counts["pending"], f"{failed} failed" if failed else "")


def _stop(workers: Sequence["subprocess.Popen[bytes]"]) -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.terminate()
