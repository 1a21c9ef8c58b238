"""The held-out part of a training split: whole groups, some of every class, the same at every call."""

import pytest

from cache.dataset import group_of
from tests.helpers.train import grouped_dataset
from train.split import split_off


def test_no_group_stands_on_both_sides_and_every_class_on_each():
    videos = grouped_dataset(classes=5, groups=19).half(1, "train")
    inside, held = split_off(videos)
    assert sorted(video.id for video in (*inside, *held)) == sorted(video.id for video in videos)
    assert not {group_of(video.id) for video in inside} & {group_of(video.id) for video in held}
    assert {video.label for video in inside} == {video.label for video in held} == set(range(5))
    assert len({group_of(video.id) for video in held}) == 5 * 4


@pytest.mark.parametrize("groups", [19, 9, 4, 3])
def test_five_turns_hold_every_group_out_once_as_far_as_there_are_five(groups):
    videos = grouped_dataset(groups=groups).half(1, "train")
    turns = min(5, groups - 1)
    held = [{group_of(video.id) for video in split_off(videos, turn)[1]} for turn in range(turns)]
    assert sum(map(len, held)) == len(set().union(*held)) == 3 * (groups - 1)
    assert split_off(videos, turns) == split_off(videos, 0)


def test_the_cut_does_not_depend_on_the_order_of_videos():
    videos = grouped_dataset(groups=9).half(1, "train")
    held = {video.id for video in split_off(videos)[1]}
    assert {video.id for video in split_off(tuple(reversed(videos)))[1]} == held
