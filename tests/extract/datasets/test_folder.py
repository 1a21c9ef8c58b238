"""Folders: classes from folder names, splits that depend on names alone and never cut a group."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.common.errors import DatasetError
from cache.dataset import SPLITS, group_of, video_id
from extract.datasets import folder, load_dataset
from extract.datasets.folder import TEST_FRACTION, arrange
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


def test_clips_of_a_film_stay_whole():
    paths = [f"wave/Film{film}_wave_f_nm_np1_fr_med_{clip}.avi" for film in range(10) for clip in range(3)]
    test = {video.id for video in arrange("mine", paths, "here").half(1, "test")}
    assert len(test) == 9
    assert len({group_of(video) for video in test}) == 3


def test_a_video_named_like_its_group_goes_with_it():
    paths = [f"a/v_g{number}{clip}.avi" for number in range(10) for clip in ("", "_c01", "_c02")]
    test = {video.id for video in arrange("mine", paths, "here").half(1, "test")}
    assert len(test) == 9
    assert len({group_of(video) for video in test}) == 3


grouped = st.dictionaries(st.integers(0, 99), st.integers(1, 8), min_size=1, max_size=20)


@given(grouped, st.integers(1, 3), st.randoms())
def test_groups_stay_whole_and_both_halves_have_videos(groups, seed, random):
    paths = [f"a/v_a_g{number:02d}_c{clip:02d}.avi" for number, clips in groups.items() for clip in range(clips)]
    test = folder.test_half(paths, seed=seed)
    assert {group_of(video_id(path)) for path in test}.isdisjoint(
        group_of(video_id(path)) for path in paths if path not in test
    )
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
