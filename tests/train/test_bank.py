"""Banks: clips gathered by index equal clips cut by hand; features that are not finite are named."""

import numpy as np
import pytest
import torch

from cache.clips import ClipRule
from cache.common.errors import TrainingError
from cache.dataset import Video
from tests.helpers.train import grouped_dataset, trainable_cache
from train.clips import check_finite, load_bank

CPU = torch.device("cpu")


def test_gathered_clips_are_the_cached_features_of_their_view(tmp_path):
    cache = trainable_cache(tmp_path)
    rule = ClipRule(length=30, stride=8)
    bank = load_bank(cache, "mid", cache.dataset.videos, rule, CPU)
    assert bank.num_views == 2
    clip_B, view_B = torch.tensor([len(bank) - 1, 0, 5]), torch.tensor([1, 0, 1])
    x_TBC = bank.gather(clip_B, view_B)
    assert x_TBC.shape == (30, 3, 256)
    assert x_TBC.dtype == torch.float32
    clips = [(video, frames) for video in cache.dataset.videos for frames in rule.frames(cache.pts_seconds(video.id))]
    for b, (clip, view) in enumerate(zip(clip_B.tolist(), view_B.tolist(), strict=True)):
        video, frames = clips[clip]
        expected_TC = cache.features(video.id, "mid", view)[frames].astype(np.float32)
        np.testing.assert_array_equal(x_TBC[:, b].numpy(), expected_TC)
        assert bank.label_N[clip] == video.label


def test_one_view_can_be_loaded_alone(tmp_path):
    cache = trainable_cache(tmp_path)
    bank = load_bank(cache, "low", cache.dataset.videos[:3], ClipRule(), CPU, views=[0])
    assert bank.num_views == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_name_the_video_and_the_frame(value):
    videos = grouped_dataset().videos[:3]
    features_VFC = torch.zeros(2, 30, 512, dtype=torch.float16)
    features_VFC[1, 12, 7] = value
    with pytest.raises(TrainingError, match=rf"{videos[1].id}.*frame 2\b"):
        check_finite(features_VFC, np.array([0, 10, 20, 30]), [video.id for video in videos], "high")


def test_a_video_without_a_class_is_refused_by_name(tmp_path):
    cache = trainable_cache(tmp_path)
    nameless = Video(id=cache.video_ids[0], path="x.avi", label=None)
    with pytest.raises(TrainingError, match=cache.video_ids[0]):
        load_bank(cache, "low", [nameless], ClipRule(), CPU)
