"""What a job on a cluster costs beside decoding and the network.

    python -m benchmarks.scale

Runs the real driver, ledger, cluster engine, shards and commits with 1,000, 10,000 and 100,000 videos, each number in
a process of its own on one machine. **Extraction is replaced by a stub**: a video's features are random numbers, five
frames each, made in no time, in claims of 16 videos as on CPUs, where a claim costs most.

Prints one JSON object. The cost is constant if `ms_per_video` and `driver_processor_ms_per_video` do not grow with the
number of videos, and if `driver_mib_peak` exceeds `driver_mib_before`, which includes the list of videos, by little.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import numpy as np

from benchmarks.random_features import random_levels
from benchmarks.turns import own_memory_mib
from cache.dataset import Dataset
from cache.ledger import Outcome
from cache.store import FeatureCache
from extract.cluster.connect import WorkerSlots, connected
from extract.cluster.driver import extract_pending
from extract.cluster.worker import ExtractWorker
from extract.fingerprint import fingerprint
from extract.meter import Meter, ticking
from extract.network.weights import Weights
from extract.pipeline import VideoFeatures
from extract.settings import ExtractSettings

FRAMES = 5
COUNTS = (1_000, 10_000, 100_000)
WORKERS = 2


def random_features(videos: Iterable[tuple[str, Path]], meter: Meter) -> Iterator[VideoFeatures]:
    """Random features for each video; no file is opened."""
    generator = np.random.default_rng(0)
    for video_id, _ in videos:
        meter.frames += FRAMES
        yield VideoFeatures(
            outcome=Outcome(video_id=video_id, status="done", num_frames=FRAMES),
            features=random_levels(FRAMES, generator),
            pts_seconds=np.arange(FRAMES) / 25,
        )


def one_job(count: int) -> dict[str, float]:
    """Run a job of `count` videos and return its figures."""
    with tempfile.TemporaryDirectory() as folder, connected():

        class Stubbed(ExtractWorker):
            def _open(self, weights: Weights) -> None:
                pass

            def _features_of(self, videos: Iterable[tuple[str, Path]], meter: Meter) -> Iterator[VideoFeatures]:
                return random_features(videos, meter)

        made_with = fingerprint(ExtractSettings(), weights_text="made up", weights_sha256="made up")
        listed = ((f"class/v{i:09d}.mp4", 0, {}) for i in range(count))
        dataset = Dataset.of_whole_videos("scale", "folder", ("class",), listed)
        path = Path(folder) / "cache"
        with FeatureCache.create(path, dataset=dataset, fingerprint=made_with, settings={}) as cache:
            paths = {video.id: Path("/nowhere") / video.path for video in dataset.videos}
            weights = Weights(text="made up", backbone="resnet34", tensors={}, sha256="made up")
            memory = [own_memory_mib()]
            started, processor = time.perf_counter(), time.process_time()
            with ticking(0.1, lambda: memory.append(own_memory_mib())):
                slots, settings = WorkerSlots(WORKERS, 0, 1), ExtractSettings()
                done = extract_pending(slots, cache, paths, settings, weights, made_with, worker=Stubbed)
            processor = time.process_time() - processor
            seconds, starting = time.perf_counter() - started, done.first_seconds or 0.0
            if cache.ledger.counts()["done"] != count or done.meter.finished != count:
                raise SystemExit(f"expected every video to be extracted once: {cache.ledger.counts()}")
            shards = len(cache.ledger.shards())
    return {
        "videos": count,
        "seconds": round(seconds, 1),
        "first_report_seconds": round(starting, 1),
        "ms_per_video": round(1e3 * (seconds - starting) / count, 3),
        "driver_processor_ms_per_video": round(1e3 * processor / count, 3),
        "shards": shards,
        "driver_mib_before": memory[0],
        "driver_mib_peak": max(memory),
    }


@click.command()
@click.option("--videos", type=int, help="Run only a job of this many videos, in this process.")
def main(videos: int | None) -> None:
    """Measure what a job costs beside extraction, for 1,000, 10,000 and 100,000 videos."""
    if videos is not None:
        click.echo(json.dumps(one_job(videos)))
        return
    results = []
    for count in COUNTS:
        command = [sys.executable, "-m", "benchmarks.scale", "--videos", str(count)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ).stdout
        results.append(json.loads(output.splitlines()[-1]))
    click.echo(json.dumps({"extraction": "stubbed by random numbers", "workers": WORKERS, "jobs": results}, indent=2))


if __name__ == "__main__":
    main()
