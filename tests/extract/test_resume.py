"""Killed at any moment and continued, or shared by two: the same features to the bit, each video once."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.common.errors import CacheError
from cache.store import FeatureCache
from tests.helpers.extract import QUICK, assert_same, cache_of, everything, extract, make_videos
from tests.helpers.faults import Control, replayed_by, seed_of, under
from tests.helpers.processes import alive, children, wait_until

torch.set_num_threads(1)

MAIN = Path(__file__).resolve().parents[2]


def start(tmp_path: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "extract", "--work", str(tmp_path / "work"), "--dataset", "toy", "--device", "cpu"]
    return subprocess.Popen([*command, *options], cwd=MAIN, stdout=subprocess.DEVNULL)


def committed(tmp_path: Path) -> int:
    """Videos that are done so far; 0 while there is no cache."""
    try:
        with FeatureCache.open(tmp_path / "work" / "cache" / "toy") as cache:
            return cache.ledger.counts()["done"]
    except CacheError:
        return 0


def wait_for(tmp_path: Path, videos: int, process: subprocess.Popen[bytes]) -> None:
    while committed(tmp_path) < videos and process.poll() is None:
        time.sleep(0.02)


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert extract(folder, "--data", str(make_videos(folder / "videos", count=36, frames=1))).exit_code == 0
    return folder


def assert_complete(tmp_path: Path, reference: Path) -> None:
    with cache_of(tmp_path) as ours, cache_of(reference) as theirs:
        assert ours.ledger.counts() == theirs.ledger.counts()
        assert_same(everything(ours), everything(theirs))
        shards = [row.name for row in ours.ledger.shards()]
        assert sorted(shards) == sorted(path.name for path in (ours.path / "shards").iterdir())
        assert sum(row.num_videos for row in ours.ledger.shards()) == len(ours.video_ids)


def test_killed_and_continued(uninterrupted, tmp_path):
    data = ("--data", str(uninterrupted / "videos"))
    process = start(tmp_path, *data, *QUICK)
    wait_for(tmp_path, 1, process)
    time.sleep(random.random() * 0.3)
    kill(process)
    assert committed(tmp_path) > 0
    assert extract(tmp_path, quick=False).exit_code == 0
    assert_complete(tmp_path, uninterrupted)


@pytest.mark.slow
def test_two_at_once_and_one_killed(uninterrupted, tmp_path):
    data = ("--data", str(uninterrupted / "videos"))
    other = start(tmp_path, *data, *QUICK)
    wait_for(tmp_path, 1, other)
    other.send_signal(signal.SIGSTOP)  # it holds videos, and its lease is not over
    killer = subprocess.Popen(["sh", "-c", f"sleep 3; kill -9 {other.pid}"])
    assert extract(tmp_path, quick=False).exit_code == 0
    killer.wait()
    other.wait()
    assert_complete(tmp_path, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("refused", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fills_up_or_fails_ends_the_run_cleanly_and_it_goes_on(uninterrupted, tmp_path, refused):
    control = Control(tmp_path)
    control.watch(tmp_path / "work")
    command = [sys.executable, "-m", "extract", "--work", str(tmp_path / "work"), "--dataset", "toy", "--device", "cpu"]
    command += ["--data", str(uninterrupted / "videos"), *QUICK]
    process = subprocess.Popen(
        command, cwd=MAIN, env={**os.environ, **under(control)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    wait_for(tmp_path, 1, process)
    control.arm(0, refused, lasting=1 << 40)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1, said
    assert said.startswith(b"error: ")
    assert b"Traceback" not in said
    assert 0 < committed(tmp_path) < 36
    assert extract(tmp_path, quick=False).exit_code == 0
    assert_complete(tmp_path, uninterrupted)


@pytest.mark.slow
def test_several_devices_share_one_cache(uninterrupted, tmp_path):
    result = extract(tmp_path, "--data", str(uninterrupted / "videos"), "--device", "cpu,cpu")
    assert result.exit_code == 0, result.output
    assert "on cpu and cpu in fp32" in result.output
    assert_complete(tmp_path, uninterrupted)


@pytest.mark.slow
def test_no_process_outlives_a_killed_extraction_on_several_devices(uninterrupted, tmp_path):
    process = start(tmp_path, "--data", str(uninterrupted / "videos"), "--device", "cpu,cpu", *QUICK)
    wait_for(tmp_path, 1, process)
    below = [pid for child in children(process.pid) for pid in (child, *children(child))]
    assert len(below) > 2
    kill(process)
    wait_until(lambda: not any(map(alive, below)), seconds=30)
    assert extract(tmp_path, quick=False).exit_code == 0
    assert_complete(tmp_path, uninterrupted)


@pytest.mark.slow
@pytest.mark.shared
def test_ten_kills_on_the_real_sample(shared, tmp_path):
    options = (
        "--data",
        str(shared / "data" / "ucf101-sample" / "UCF-101"),
        "--weights",
        "random:0",
        "--max-frames",
        "24",
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole, *options).wait() == 0
    seed = seed_of()
    moments = random.Random(seed)
    kills = 0
    with replayed_by(FAULTS_SEED=seed):
        while kills < 10 and committed(killed) < 125:
            process = start(killed, *options)
            time.sleep(5 + moments.random() * 12)
            if process.poll() is None:
                kill(process)
                kills += 1
        assert start(killed, *options).wait() == 0
        assert kills == 10 or committed(killed) == 125
        assert_complete(killed, whole)
    with cache_of(killed) as cache:
        assert np.isfinite(cache.features(cache.video_ids[0], "high")).all()
