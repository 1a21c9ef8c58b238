"""How fast features are read: whole levels into memory, and random clips, against other ways of storing them.

    python -m benchmarks.cache

Makes a cache of random numbers in each format, with videos as long as UCF-101's, and measures

    bulk                           one level of all videos into memory, with checksums verified; `ratio` is the rate
                                   against one thread that reads a plain file of the same bytes
    clips_per_second               random clips of 40 frames
    other_layouts_clips_per_second the same clips from one HDF5 dataset per video, and from one npy file per video

Prints one JSON object. Before it is timed, every way of reading has to give the same numbers. Ratios are taken within
one run. The page cache is warm, as it is in training.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import click
import h5py
import numpy as np

from benchmarks.random_features import make_cache
from cache.dataset import Dataset
from cache.shards import BACKENDS
from cache.store import FeatureCache

SHARD_VIDEOS = 64
CLIP_FRAMES = 40
REPEATS = 7


def seconds_of(action: Callable[[], object]) -> float:
    """Median seconds of one call, after one call to warm up."""
    action()
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return median(times)


def bulk(cache: FeatureCache, folder: Path) -> dict[str, float]:
    """Rates of reading one level into memory: from the cache, with checksums verified, and from a plain file."""
    expected = cache.load("high", cache.video_ids).features.numpy()
    plain = folder / "plain.bin"
    expected.tofile(plain)

    def read_plain() -> np.ndarray:
        out = np.empty(expected.shape, expected.dtype)
        with plain.open("rb", buffering=0) as file:
            view, done = memoryview(out.reshape(-1).view(np.uint8)), 0
            while done < len(view):
                done += file.readinto(view[done:])
        return out

    assert np.array_equal(read_plain(), expected)
    plain_seconds = seconds_of(read_plain)
    cache_seconds = seconds_of(lambda: cache.load("high", cache.video_ids))
    plain.unlink()
    size = expected.nbytes / 1e9
    return {
        "gigabytes": round(size, 3),
        "plain_gb_per_second": round(size / plain_seconds, 2),
        "cache_gb_per_second": round(size / cache_seconds, 2),
        "ratio": round(plain_seconds / cache_seconds, 3),
    }


def clips_a_second(read: Callable[[str, int, int], np.ndarray], cache: FeatureCache, clips: int) -> float:
    """Rate of reading random clips of 40 frames of level high; every way of reading gets the same clips.

    The first 200 clips are compared with those of the cache.
    """
    rng = np.random.default_rng(1)
    ids = cache.video_ids
    chosen = [ids[i] for i in rng.integers(0, len(ids), clips)]
    spans = [(video, int(rng.integers(0, cache.num_frames(video) - CLIP_FRAMES + 1))) for video in chosen]
    for video, start in spans[:200]:
        expected = cache.features(video, "high", 0, start, start + CLIP_FRAMES)
        assert np.array_equal(read(video, start, start + CLIP_FRAMES), expected)
    for video, start in spans:
        read(video, start, start + CLIP_FRAMES)
    started = time.perf_counter()
    for video, start in spans:
        read(video, start, start + CLIP_FRAMES)
    return round(clips / (time.perf_counter() - started))


def other_layouts(cache: FeatureCache, folder: Path, clips: int) -> dict[str, float]:
    """Rates for the same clips from one HDF5 dataset per video, and from one npy file per video."""
    single, files = folder / "per-video.h5", folder / "npy"
    files.mkdir()
    with h5py.File(single, "w") as file:
        for video in cache.video_ids:
            file[video] = cache.features(video, "high")
            np.save(files / f"{video}.npy", cache.features(video, "high"))
    with h5py.File(single) as file:
        hdf5 = clips_a_second(lambda video, start, stop: file[video][start:stop], cache, clips)
    npy = clips_a_second(
        lambda video, start, stop: np.array(np.load(files / f"{video}.npy", mmap_mode="r")[start:stop]), cache, clips
    )
    single.unlink()
    shutil.rmtree(files)
    return {"hdf5_dataset_per_video": hdf5, "npy_per_video": npy}


@click.command()
@click.option("--videos", default=1600, show_default=True, help="Videos of 186 frames on average (0.33 MB each).")
@click.option("--clips", default=20_000, show_default=True, help="Random clips for each way of reading.")
def main(videos: int, clips: int) -> None:
    """Measure how fast features are read; prints JSON."""
    # UCF-101's average length is 186 frames.
    lengths = {f"v{i:06d}": int(n) for i, n in enumerate(np.random.default_rng(0).integers(60, 313, videos))}
    dataset = Dataset.of_whole_videos("benchmark", "folder", ("a",), ((f"{name}.avi", 0, {}) for name in lengths))
    with tempfile.TemporaryDirectory() as name:
        scratch, results = Path(name), {}
        for backend in BACKENDS:
            make_cache(scratch / backend, dataset, lengths, backend, SHARD_VIDEOS)
            cache = FeatureCache.open(scratch / backend)
            results[backend] = {
                "bulk": bulk(cache, scratch),
                "clips_per_second": clips_a_second(
                    lambda video, start, stop, cache=cache: cache.features(video, "high", 0, start, stop), cache, clips
                ),
            }
        results["other_layouts_clips_per_second"] = other_layouts(cache, scratch, clips)
    click.echo(json.dumps({"videos": videos, "clips": clips, **results}, indent=2))


if __name__ == "__main__":
    main()
