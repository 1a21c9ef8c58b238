"""Extraction on this machine: one device in this process, or a process for each of several devices.

`python -m extract.local PARENT` is such a process, and ends with process PARENT. It reads its extraction, pickled, from
its standard input. The processes share the cache by leases, as extractors that know nothing of each other do.
"""

import json
import os
import pickle
import selectors
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, redirect_stdout, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from cache.common.console import StageGroup
from cache.common.device import find_device
from cache.common.errors import MrrnError
from cache.common.interrupts import Interrupted, held_back
from cache.common.progress import progress
from cache.fingerprint import Fingerprint
from cache.processes import end_with
from cache.store import FeatureCache
from extract import plan
from extract.claims import ClaimQueue
from extract.fingerprint import fingerprint
from extract.meter import Meter, ticking
from extract.network.engine import Engine, open_engine
from extract.network.weights import Weights, load_weights
from extract.pipeline import extract_features
from extract.plan import Extraction
from extract.settings import ExtractSettings, device_defaults
from extract.shards import shards_of

POLL_SECONDS: Final = 1.0


def extract(extraction: Extraction) -> int:
    """Extract until no video is left, neither here nor with other extractors; returns how many frames this took.

    MrrnError if that cannot be.
    """
    devices = [find_device(device.strip()) for device in extraction.settings.device.split(",")]
    settings, weights, made_with = _decide(extraction, devices[0])
    with plan.open_cache(extraction, settings, made_with) as cache:
        pending = cache.ledger.counts()["pending"]
        if not pending:
            return 0
        meter = Meter(plan.announce(extraction, cache, settings, weights, " and ".join(devices)))
        engine = open_engine(settings, weights) if len(devices) == 1 else None
        with (
            progress("extract", pending, "videos", frames=meter.amounts if meter.forecast else None) as bar,
            ticking(1.0, lambda: bar.update(meter.finished, meter.text())),
        ):
            if engine is None:
                _extract_in_processes(extraction, devices, settings, cache, meter)
            else:
                extract_pending(cache, extraction.video_paths, settings, made_with, engine, meter)
        return meter.frames


def extract_pending(
    cache: FeatureCache,
    paths: Mapping[str, Path],
    settings: ExtractSettings,
    made_with: Fingerprint,
    engine: Engine,
    meter: Meter,
    *,
    siblings: bool = False,
) -> None:
    """Extract the pending videos of `cache` on one device; waits for what other extractors, or `siblings`, have.

    After Ctrl-C the videos that are finished are committed first.
    """
    with ClaimQueue(cache, paths, made_with, device=settings.device) as claims:
        features_of = partial(extract_features, settings=settings, engine=engine, meter=meter)
        rows = device_defaults(settings.device).shard_rows
        while claim := claims.wait_for_claim(siblings=siblings):
            tasks = claims.tasks(claim)
            try:
                with held_back():
                    for shard in shards_of(tasks, features_of, shard_rows=rows, strict=settings.strict, meter=meter):
                        claims.commit(shard)
            finally:
                claims.drain()


def _decide(extraction: Extraction, device: str) -> tuple[ExtractSettings, Weights, Fingerprint]:
    settings = extraction.settings.decided(device)
    weights = load_weights(settings.weights, settings.backbone)
    made_with = fingerprint(settings, weights_text=weights.text, weights_sha256=weights.sha256)
    return settings, weights, made_with


def _extract_in_processes(
    extraction: Extraction, devices: Sequence[str], settings: ExtractSettings, cache: FeatureCache, meter: Meter
) -> None:
    """Extract with a process for each device; a process that dies leaves its videos to the others.

    MrrnError if all have ended and videos are left.
    """
    cores = len(os.sched_getaffinity(0))
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, cores // len(devices)))}
    shared = replace(
        extraction.settings,
        jobs=max(1, (extraction.settings.jobs or cores) // len(devices)),
        precision=settings.precision,
        batch_frames=settings.batch_frames,
    )
    with ExitStack() as stack:
        command = [sys.executable, "-m", "extract.local", str(os.getpid())]
        processes = [
            # Out of the terminal's group: Ctrl-C is for this process, which stops them.
            stack.enter_context(
                subprocess.Popen(
                    command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0
                )
            )
            for _ in devices
        ]
        for process in processes:
            stack.callback(process.terminate)
        for process, device in zip(processes, devices, strict=True):
            assert process.stdin is not None
            each = replace(extraction, settings=replace(shared, device=device))
            with suppress(BrokenPipeError), process.stdin as pipe:
                pickle.dump((each, meter.forecast), pipe)
        _watch(processes, meter)
    if left := cache.ledger.counts()["pending"]:
        codes = zip(devices, (process.returncode for process in processes), strict=True)
        ended = ", ".join(f"{device} ended with {code}" for device, code in codes if code)
        raise MrrnError(f"{left} videos are not extracted: {ended}; the reasons stand above. The same command goes on")


def _watch(processes: Sequence["subprocess.Popen[bytes]"], meter: Meter) -> None:
    """Add up in `meter` what the processes report, until all have ended."""
    reports: dict[int, Mapping[str, Any]] = {}
    with selectors.DefaultSelector() as selector:
        for process in processes:
            selector.register(process.stdout or -1, selectors.EVENT_READ, process)
        while selector.get_map():
            for key, _ in selector.select():
                if line := key.fileobj.readline():  # type: ignore[union-attr]
                    reports[key.data.pid] = json.loads(line)
                    meter.add_up(list(reports.values()))
                else:
                    selector.unregister(key.fileobj)
    for process in processes:
        process.wait()


def _report(meter: Meter) -> None:
    with suppress(BrokenPipeError):  # the parent no longer listens, and waits for what is committed
        os.write(1, f"{json.dumps(meter.counts())}\n".encode())


@click.group(cls=StageGroup, invoke_without_command=True)
@click.argument("parent", type=int)
def main(parent: int) -> None:
    """Extract on one of several devices. Says how far it is in lines of JSON; errors go to stderr."""
    end_with(parent)
    extraction, forecast = pickle.load(sys.stdin.buffer)  # noqa: S301  (from `_extract_in_processes`)
    settings, weights, made_with = _decide(extraction, extraction.settings.device)
    drift = extraction.options.allow_drift
    with FeatureCache.open_for_extraction(extraction.cache_path, made_with, drift) as cache:
        engine, meter = open_engine(settings, weights), Meter(forecast)
        try:
            with redirect_stdout(sys.stderr), ticking(POLL_SECONDS, lambda: _report(meter)):
                extract_pending(cache, extraction.video_paths, settings, made_with, engine, meter, siblings=True)
        except Interrupted as interrupted:
            sys.exit(128 + interrupted.number)


if __name__ == "__main__":
    main()
