"""The demo: made once, the same each time, continued when killed, its pairs of classes differing by order alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest

from cache.common.errors import DatasetError
from cache.dataset import group_of
from extract.datasets import demo, load_dataset
from extract.datasets.paths import find_videos


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    load_dataset("demo", None, subset=False, work=folder)
    return folder


def made(home: Path) -> dict[str, bytes]:
    """Each video and its bytes; what a killed writer left aside is hidden, and no video."""
    return {path: (home / path).read_bytes() for path in find_videos(home)}


def frames_of(file: Path) -> np.ndarray:
    with av.open(str(file)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def frames_in(file: Path) -> int:
    with av.open(str(file)) as container:
        return sum(packet.size > 0 for packet in container.demux(video=0))


def test_six_classes_with_whole_groups_in_each_half(work):
    dataset, root = load_dataset("demo", None, subset=True, work=work)
    assert (dataset.source, dataset.subset, root) == ("demo", None, (work / "data/demo").resolve())
    assert dataset.classes == tuple(sorted(demo.EVENTS))
    for split in (1, 2, 3):
        train, test = dataset.half(split, "train"), dataset.half(split, "test")
        assert (len(train), len(test)) == (48, 24)
        assert {group_of(video.id) for video in train}.isdisjoint({group_of(video.id) for video in test})


def test_videos_decode_to_what_was_drawn(work):
    for video in demo.VIDEOS[::13]:
        drawn, decoded = video.frames(), frames_of(work / "data/demo" / video.path)
        assert demo.FRAMES[0] <= len(drawn) <= demo.FRAMES[1]
        assert decoded.shape == drawn.shape
        assert abs(decoded.astype(int) - drawn).mean() < 12


def test_it_is_small_enough_for_two_cores(work):
    videos = made(work / "data/demo")
    assert sum(frames_in(work / "data/demo" / path) for path in videos) < 2_200
    assert sum(map(len, videos.values())) < 10e6


@pytest.mark.parametrize("forwards", [name for name, (_, backwards) in demo.EVENTS.items() if not backwards])
def test_the_classes_of_a_pair_differ_by_order_alone(forwards):
    picture = demo.EVENTS[forwards][0]
    backwards = next(name for name, event in demo.EVENTS.items() if event == (picture, True))
    scene = demo.draw_scene(np.random.default_rng(0))
    first, second = (
        demo.render(name, scene, 30, _Middle()).astype(int)
        for name in (forwards, backwards)  # no noise, no chance
    )
    assert abs(first - second[::-1]).max() == 0
    assert abs(first - second).mean() > 5


class _Middle:
    """A random generator that draws the middle of every range."""

    def uniform(self, low, high):
        return (low + high) / 2

    def standard_normal(self, size, dtype):
        return np.zeros(size, dtype)


def test_doing_it_twice_does_nothing(work):
    before = {file: file.stat().st_mtime_ns for file in (work / "data/demo").rglob("*")}
    assert demo.make(work / "data/demo") == 0
    assert {file: file.stat().st_mtime_ns for file in (work / "data/demo").rglob("*")} == before


def test_a_killed_maker_is_continued_to_the_same_bytes(work, tmp_path):
    home = tmp_path / "demo"
    command = (
        f"from pathlib import Path; from extract.datasets import demo; demo.make(Path({str(home)!r}), demo.VIDEOS[:12])"
    )
    maker = subprocess.Popen([sys.executable, "-c", command])
    while len(list(home.glob("*/*.*"))) < 3:
        assert maker.poll() is None, "made everything before it could be killed"
        time.sleep(0.005)
    os.kill(maker.pid, signal.SIGKILL)
    maker.wait()
    assert 0 < demo.make(home, demo.VIDEOS[:12]) < 12
    assert {path: (work / "data/demo" / path).read_bytes() for path in made(home)} == made(home)


def test_videos_of_another_recipe_are_made_again(work, tmp_path):
    home = tmp_path / "demo"
    (home / "old_class").mkdir(parents=True)
    (home / "old_class" / "x.avi").write_bytes(b"old")
    (home / "recipe.txt").write_text("version 0")
    assert demo.make(home, demo.VIDEOS[:2]) == 2
    assert set(made(home)) == {video.path for video in demo.VIDEOS[:2]}


def test_a_data_folder_of_the_users_own_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(DatasetError, match="given by --data; leave that out"):
        load_dataset("demo", tmp_path / "mine", subset=False, work=tmp_path / "work")
    assert list((tmp_path / "mine").iterdir()) == []
