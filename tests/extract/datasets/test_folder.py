"""Folders: classes from folder names, splits that depend on names alone and never cut a group."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.common.errors import DatasetError
from cache.dataset import SPLITS
from extract.datasets import folder, load_dataset
from extract.datasets.folder import TEST_FRACTION, arrange, group
from tests.helpers.sources import touch


def test_classes_are_folders_and_every_split_covers_all_videos(tmp_path):
    paths = [f"{name}/{number}.mp4" for name in ("wave", "climb") for number in range(10)]
    touch(tmp_path, paths)
    dataset, root = load_dataset("mine", tmp_path, subset=False, work=tmp_path / "work")
    assert (dataset.classes, root, dataset.subset) == (("climb", "wave"), tmp_path, None)
    for split in SPLITS:
        assert (len(dataset.half(split, "train")), len(dataset.half(split, "test"))) == (14, 6)
    assert dataset.half(1, "test") != dataset.half(2, "test") != dataset.half(3, "test")


def test_the_split_is_the_same_on_every_machine():
    videos = arrange("mine", [f"wave/{number}.avi" for number in range(10)], "here").half(1, "test")
    assert [video.id for video in videos] == ["wave/1", "wave/7", "wave/8"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a/v_x_g07_c01.avi", "a/v_x_g07"),
        ("a/v_x_g07_c02.avi", "a/v_x_g07"),
        ("a/v_x_g7.avi", "a/v_x_g7.avi"),
        ("a/big_goal.avi", "a/big_goal.avi"),
    ],
)
def test_groups_show_in_names(path, expected):
    assert group(path) == expected


grouped = st.dictionaries(st.integers(0, 99), st.integers(1, 8), min_size=1, max_size=20)


@given(grouped, st.integers(1, 3), st.randoms())
def test_groups_stay_whole_and_both_halves_have_videos(groups, seed, random):
    paths = [f"a/v_a_g{number:02d}_c{clip:02d}.avi" for number, clips in groups.items() for clip in range(clips)]
    test = folder.test_half(paths, seed=seed)
    assert {group(path) for path in test}.isdisjoint(group(path) for path in paths if path not in test)
    assert bool(test) == (len(groups) > 1)
    assert len(test) < len(paths)
    assert abs(len(test) - TEST_FRACTION * len(paths)) <= max(groups.values())
    random.shuffle(paths)
    assert folder.test_half(paths, seed=seed) == test


def test_videos_outside_a_class_folder_are_refused(tmp_path):
    touch(tmp_path, ["a/x.avi", "y.avi"])
    with pytest.raises(DatasetError, match=r"1 videos are in no class's folder: y\.avi.*CSV"):
        load_dataset("mine", tmp_path, subset=False, work=tmp_path / "work")


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="has no video files"):
        load_dataset("mine", tmp_path, subset=False, work=tmp_path / "work")


def test_two_files_with_one_id_are_refused(tmp_path):
    touch(tmp_path, ["a/x.avi", "a/x.mp4"])
    with pytest.raises(DatasetError, match=r"'a/x\.mp4' has the same id as 'a/x\.avi'"):
        load_dataset("mine", tmp_path, subset=False, work=tmp_path / "work")
