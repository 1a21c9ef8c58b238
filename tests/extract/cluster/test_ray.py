"""Extraction on a Ray cluster of four nodes: equal to the local engine's, whatever is killed on the way."""

import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from os import kill
from pathlib import Path

import pytest
from click.testing import CliRunner

from cache.cli import main as cache_main
from cache.commit import token_of
from tests.helpers.extract import QUICK, assert_same, cache_of, everything, extract
from tests.helpers.ray import FourNodes, needs_ray, wait_for, worker_with_open, workers
from tests.helpers.video import encode

pytestmark = pytest.mark.slow
needs_ray()

RUNS = 20
VIDEOS = 80
FAULTS = ("node", "actor", "worker")
ON_CPU = ("--dataset", "toy", "--device", "cpu", *QUICK)


@pytest.fixture(scope="module")
def cluster() -> Iterator[FourNodes]:
    nodes = FourNodes()
    yield nodes
    nodes.close()


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for number in range(VIDEOS):
        folder = root / f"class{number % 2}"
        folder.mkdir(exist_ok=True)
        encode(folder / f"v_g{number:02d}_c01.avi", 2 + number % 4, size=(48, 64))
    return root


@pytest.fixture(scope="module")
def expected(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("local")
    assert extract(folder, "--data", str(videos)).exit_code == 0
    with cache_of(folder) as cache:
        return everything(cache)


def assert_sound(work: Path, expected: dict, said: str) -> None:
    """Complete, each video once, bit for bit the local engine's features, and nothing left over."""
    with cache_of(work.parent) as cache:
        counts = cache.ledger.counts()
        assert (counts["done"], counts["pending"], counts["failed"]) == (VIDEOS, 0, 0), said
        assert_same(everything(cache), expected)
        places = [(place.shard, place.position) for place in cache.places]
        assert len(set(places)) == len(places) == VIDEOS
        names = {entry.name for entry in (cache.path / "shards").iterdir()}
        assert names == {row.name for row in cache.ledger.shards()}, "something is left over"
        assert sum(row.num_videos for row in cache.ledger.shards()) == VIDEOS, "a video was committed twice"
        verified = CliRunner().invoke(cache_main, ["verify", str(cache.path)])
        assert verified.exit_code == 0, verified.output


def committed(work: Path) -> int:
    with suppress(Exception), cache_of(work.parent) as cache:
        return VIDEOS - cache.ledger.counts()["pending"]
    return 0


def test_four_nodes_give_the_local_engines_cache(cluster, videos, expected, tmp_path):
    code, said = cluster.extract(tmp_path / "work", "--data", str(videos), *ON_CPU)
    assert code == 0, said
    assert_sound(tmp_path / "work", expected, said)
    assert "% outside decoding and the network" in said
    code, said = cluster.extract(tmp_path / "work", "--dataset", "toy")
    assert (code, "nothing to do" in said) == (0, True), said


@pytest.mark.parametrize("number", range(RUNS))
def test_whatever_is_killed_the_job_ends_complete(cluster, videos, expected, tmp_path, number):
    """A node removed, an actor killed, a decoder's parent killed in the middle of a video: at random moments.

    Time alone would put most of them into the start, which takes longest: so some videos have to be committed first.
    """
    chance, work = random.Random(number), tmp_path / "work"
    fault = FAULTS[number % len(FAULTS)]
    with cluster.extracting(work, "--data", str(videos), *ON_CPU) as driver:
        wait_for(lambda: worker_with_open(videos) or len(workers()) >= 4 or committed(work))
        enough = chance.randrange(VIDEOS - 16)
        wait_for(lambda: committed(work) >= enough)
        time.sleep(chance.uniform(0.0, 2.0))
        if fault == "node":
            cluster.lose_node(chance.randrange(4))
        elif fault == "actor" and (living := sorted(workers())):
            kill(chance.choice(living), signal.SIGKILL)
        elif fault == "worker" and (parent := wait_for(lambda: worker_with_open(videos) or -1, 30.0)) > 0:
            kill(parent, signal.SIGKILL)
        done_before = committed(work)
        said, _ = driver.communicate(timeout=900)
        print(f"run {number}: {fault} with {done_before} of {VIDEOS} committed")
    cluster.restore()
    assert driver.returncode == 0, said
    assert_sound(work, expected, said)


def test_a_killed_driver_is_continued_by_the_same_command(cluster, videos, expected, tmp_path):
    work = tmp_path / "work"
    with cluster.extracting(work, "--data", str(videos), *ON_CPU):
        wait_for(lambda: committed(work) >= 16, 300.0)
    done_before = committed(work)
    with cache_of(tmp_path) as cache:
        shards_before = {row.name for row in cache.ledger.shards()}
    assert done_before < VIDEOS
    code, said = cluster.extract(work, "--dataset", "toy")
    assert code == 0, said
    assert f"{VIDEOS - done_before} of {VIDEOS} videos" in said
    assert_sound(work, expected, said)
    with cache_of(tmp_path) as cache:
        assert shards_before <= {row.name for row in cache.ledger.shards()}, "work was done again"


def test_a_second_driver_is_told_and_nothing_is_done_twice(cluster, videos, expected, tmp_path):
    work = tmp_path / "work"
    with cluster.extracting(work, "--data", str(videos), *ON_CPU) as first:
        wait_for(lambda: (work / "cache/toy/cache.json").exists() and workers(), 300.0)
        command = ["--work", str(work), "--dataset", "toy", "--retry-failed"]
        second = subprocess.run(
            [sys.executable, "-m", "extract", *command], capture_output=True, text=True, timeout=900, check=False
        )
        said, _ = first.communicate(timeout=900)
    assert (first.returncode, second.returncode) == (0, 0), said + second.stdout + second.stderr
    assert "another extractor is at work" in second.stdout
    assert_sound(work, expected, said)


def test_a_video_that_kills_its_workers_is_quarantined_by_name(cluster, videos, tmp_path):
    """Long enough to be seen in a decoder's hands, whose worker then dies, each time."""
    root = tmp_path / "data/class0"
    (root.parent / "class1").mkdir(parents=True)
    root.mkdir()
    for number in range(5):
        encode(root.parent / f"class{number % 2}" / f"v_g{number:02d}_c01.avi", 3, size=(48, 64))
    lethal = root / "lethal_g09_c01.avi"
    encode(lethal, 400, size=(48, 64))
    deaths = 0
    with cluster.extracting(tmp_path / "work", "--data", str(root.parent), *ON_CPU) as driver:
        seen: set[int] = set()
        while driver.poll() is None:
            if (parent := worker_with_open(lethal)) and parent not in seen:
                seen.add(parent)
                deaths += 1
                with suppress(ProcessLookupError):
                    kill(parent, signal.SIGKILL)
            time.sleep(0.02)
        said = driver.stdout.read()
    assert driver.returncode == 3, said
    assert deaths == 3
    assert re.search(r"failed class0/lethal_g09_c01: its worker died 3 times", said), said
    with cache_of(tmp_path) as cache:
        assert len(cache.video_ids) == 5
        assert not [name for name in (cache.path / "shards").iterdir() if token_of(name.name) is not None]


@pytest.mark.shared
def test_ucf101s_sample_is_the_same_through_ray(cluster, shared, tmp_path):
    """A node's core computes what another process' core does: bit for bit, with equal batches."""
    data = next(folder for folder in (shared / "data").iterdir() if "ucf" in folder.name.lower())
    options = ("--data", str(data), "--subset", "--dataset", "ucf101", "--device", "cpu", "--max-frames", "8", *QUICK)
    assert extract(tmp_path / "local", *options[:2], *options[2:], dataset="ucf101", quick=False).exit_code in (0, 3)
    code, said = cluster.extract(tmp_path / "ray/work", *options, seconds=1800)
    assert code in (0, 3), said
    with cache_of(tmp_path / "local", "ucf101") as ours, cache_of(tmp_path / "ray", "ucf101") as theirs:
        assert_same(everything(theirs), everything(ours))
        outcomes = [
            {json.dumps([o.video_id, o.status, o.reason]) for o in each.ledger.outcomes()} for each in (ours, theirs)
        ]
        assert outcomes[0] == outcomes[1]
