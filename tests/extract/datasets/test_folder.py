"""Folders: classes from folder names, splits that depend on names alone and never cut a group."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.common.errors import DatasetError
from cache.dataset import SPLITS, Half
from extract.datasets import folder, load_dataset
from extract.datasets.folder import arrange
from tests.helpers.sources import touch


def test_classes_are_folders_and_every_split_covers_all_videos(tmp_path):
    paths = [f"{name}/{number}.mp4" for name in ("wave", "climb") for number in range(60)]
    touch(tmp_path, paths)
    dataset, root = load_dataset("mine", tmp_path, subset=False, work=tmp_path / "work")
    assert (dataset.classes, root, dataset.subset) == (("climb", "wave"), tmp_path, None)
    for split in SPLITS:
        train, test = dataset.half(split, "train"), dataset.half(split, "test")
        assert len(train) + len(test) == 120
        assert 20 < len(test) < 52
    assert dataset.half(1, "test") != dataset.half(2, "test") != dataset.half(3, "test")


def test_the_split_is_the_same_on_every_machine():
    samples = arrange("mine", [f"wave/{number}.avi" for number in range(10)], "here", {}).half(1, "test")
    assert [sample.id for sample in samples] == ["wave/0", "wave/1", "wave/5", "wave/6", "wave/7", "wave/8"]


def test_clips_of_a_film_stay_whole_also_beside_a_video_named_like_it():
    paths = [f"wave/Film{film}_wave_f_nm_np1_fr_med_{clip}.avi" for film in range(10) for clip in range(3)]
    paths += [f"a/v_g{number}{clip}.avi" for number in range(10) for clip in ("", "_c01", "_c02")]
    dataset = arrange("mine", paths, "here", {})
    train, test = ({sample.group_name for sample in dataset.half(1, half)} for half in ("train", "test"))
    assert not train & test
    assert len(train | test) == 20


names = st.lists(st.integers(0, 10**6).map(lambda number: f"a/v{number}"), min_size=1, max_size=20, unique=True)


@given(names, st.integers(1, 3), st.integers(0, 19))
def test_what_is_added_moves_nothing_and_both_halves_have_groups(groups, seed, before):
    earlier = folder.draw_halves(groups[: before + 1], seed, {})
    now = folder.draw_halves(groups, seed, earlier)
    assert set(now.values()) == ({"train", "test"} if len(groups) > 1 else {"train"})
    assert folder.draw_halves(list(reversed(groups)), seed, earlier) == now
    # A single group is for training whatever its name draws, and gives way where a second one needs the half.
    assert earlier.items() <= now.items() or len(earlier) == 1
    # Without a record only those move that were put into a half to fill it.
    anew = folder.draw_halves(groups, seed, {})
    moved = {group for group in earlier if anew[group] != earlier[group]}
    assert len(moved) <= 2


def test_a_cache_keeps_the_halves_that_it_has_and_says_so(tmp_path):
    touch(tmp_path, [f"{name}/{number}.mp4" for name in ("wave", "climb") for number in range(9)])
    first, _ = load_dataset("mine", tmp_path, subset=False, work=tmp_path / "work")
    other: dict[str, Half] = {"train": "test", "test": "train", "none": "none"}
    turned = tuple(
        replace(sample, splits={split: other[half] for split, half in sample.splits.items()})
        for sample in first.samples
    )
    recorded, said = replace(first, samples=turned), []
    touch(tmp_path, ["wave/new.mp4"])
    found, _ = load_dataset("mine", tmp_path, subset=False, work=tmp_path / "work", recorded=recorded, say=said.append)
    assert tuple(sample for sample in found.samples if sample.id != "wave/new") == turned
    assert "18 videos keep the halves that this cache has for them" in said[-1]
    # Lists that others publish are followed as they are.
    assert folder.halves_of(replace(recorded, source="manifest")) == {1: {}, 2: {}, 3: {}}


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


@pytest.mark.parametrize(
    "folders", [("fold1", "fold2"), ("trn", "tst"), ("train-01", "val-01"), ("split 1", "split 2")]
)
def test_numbered_and_abbreviated_halves_are_not_classes(tmp_path, folders):
    touch(tmp_path, [f"{folder}/wave/{folder}.avi" for folder in folders])
    with pytest.raises(DatasetError, match="are halves of a split and not classes"):
        load_dataset("mine", tmp_path, subset=False, work=tmp_path / "work")


def test_actions_that_sound_like_halves_are_classes(tmp_path):
    touch(tmp_path, [f"{folder}/{folder}.avi" for folder in ("fold", "split", "train")])
    dataset, _ = load_dataset("mine", tmp_path, subset=False, work=tmp_path / "work")
    assert dataset.classes == ("fold", "split", "train")
