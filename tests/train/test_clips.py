"""Clips: index lists over the frames of several videos; banks in memory, and streamed banks with the same batches."""

import pickle
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import train.clips
from cache.clips import ClipRule
from cache.common.errors import TrainingError
from cache.dataset import Sample
from cache.store import FeatureCache
from tests.helpers.train import grouped_dataset, trainable_cache
from tests.train.test_trainer import RECIPE, make_trainer, same, weights
from train.clip_dataset import ClipDataset
from train.clips import Bank, StreamedBank, channel_statistics, check_finite, cut, from_memory, load_bank

CPU = torch.device("cpu")
RULE = ClipRule(length=30, stride=4)


def test_two_videos_by_hand():
    pts = np.concatenate([np.arange(4) / 25, np.arange(2) / 25])
    table = cut(("a", "b"), (1, 0), [range(4), range(4, 6)], pts, ClipRule(length=3, stride=1, max_clips=9))
    assert table.frames_NT.tolist() == [[0, 1, 2], [1, 2, 3], [4, 5, 4]]
    assert table.spans_N2.tolist() == [[0, 3], [1, 4], [0, 3]]
    assert table.sample_N.tolist() == [0, 0, 1]
    assert table.label_N.tolist() == [1, 1, 0]
    assert table.ids_of(np.array([2, 0, 1])) == ["a", "b"]


def test_spans_are_counted_at_the_rules_rate():
    pts = np.arange(60) / 30
    table = cut(("a",), (0,), [range(60)], pts, ClipRule(length=10, stride=10, max_clips=9, fps=15.0))
    assert table.spans_N2.tolist() == [[0, 10], [10, 20], [20, 30]]
    assert table.frames_NT[1].tolist() == list(range(20, 40, 2))


@given(st.lists(st.integers(1, 70), min_size=1, max_size=8), st.integers(1, 40), st.integers(1, 12), st.integers(1, 5))
def test_every_clip_stays_inside_its_video(counts, length, stride, max_clips):
    offsets = np.concatenate([[0], np.cumsum(counts)])
    pts = np.concatenate([np.arange(count) / 25 for count in counts])
    rule = ClipRule(length=length, stride=stride, max_clips=max_clips)
    ranges = [range(*pair) for pair in pairwise(offsets.tolist())]
    table = cut([str(i) for i in range(len(counts))], [0] * len(counts), ranges, pts, rule)
    assert len(table) == sum(rule.count(count) for count in counts)
    assert (table.frames_NT >= offsets[table.sample_N][:, None]).all()
    assert (table.frames_NT < offsets[table.sample_N + 1][:, None]).all()


def test_the_torch_data_set_has_the_clips_that_training_has(tmp_path):
    cache = trainable_cache(tmp_path)
    clips = ClipDataset(cache, "mid", "test", view=1, clips="keep=first")
    clips = pickle.loads(pickle.dumps(clips))  # noqa: S301 (as a spawned worker gets it)
    bank = load_bank(cache, "mid", cache.dataset.half(1, "test"), ClipRule(), CPU, views=[1])
    all_B = torch.arange(len(bank))
    x_TBC = bank.gather(all_B, torch.zeros_like(all_B))
    found = [clips[index] for index in range(len(clips))]
    assert torch.equal(torch.stack([features for features, _ in found], dim=1), x_TBC)
    assert [label for _, label in found] == bank.label_N.tolist()


def test_means_are_those_of_each_samples_frames(tmp_path):
    cache = FeatureCache.open(str(trainable_cache(tmp_path).path))
    means_NC, label_N, ids = cache.means("low", "train", view=1)
    samples = cache.dataset.half(1, "train")
    assert (means_NC.dtype, list(ids)) == (np.float32, [sample.id for sample in samples])
    assert label_N.tolist() == [sample.label for sample in samples]
    for mean_C, video in zip(means_NC, ids, strict=True):
        np.testing.assert_allclose(mean_C, cache.features(video, "low", 1).astype(np.float64).mean(axis=0), atol=1e-5)
    assert "24 of 24 videos of tiny, 3 classes; levels low 128, mid 256, high 512; views center, center_flip" in repr(
        cache
    )


def test_gathered_clips_are_the_cached_features_of_their_view(tmp_path):
    cache = trainable_cache(tmp_path)
    rule = ClipRule(length=30, stride=8)
    bank = load_bank(cache, "mid", cache.dataset.samples, rule, CPU)
    assert bank.num_views == 2
    clip_B, view_B = torch.tensor([len(bank) - 1, 0, 5]), torch.tensor([1, 0, 1])
    x_TBC = bank.gather(clip_B, view_B)
    assert x_TBC.shape == (30, 3, 256)
    assert x_TBC.dtype == torch.float32
    clips = [(video, frames) for video in cache.dataset.samples for frames in rule.frames(cache.pts_seconds(video.id))]
    for b, (clip, view) in enumerate(zip(clip_B.tolist(), view_B.tolist(), strict=True)):
        video, frames = clips[clip]
        expected_TC = cache.features(video.id, "mid", view)[frames].astype(np.float32)
        np.testing.assert_array_equal(x_TBC[:, b].numpy(), expected_TC)
        assert bank.label_N[clip] == video.label


def test_one_view_can_be_loaded_alone(tmp_path):
    cache = trainable_cache(tmp_path)
    bank = load_bank(cache, "low", cache.dataset.samples[:3], ClipRule(), CPU, views=[0])
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
    nameless = Sample(video=cache.video_ids[0], label=None)
    with pytest.raises(TrainingError, match=cache.video_ids[0]):
        load_bank(cache, "low", [nameless], ClipRule(), CPU)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return trainable_cache(tmp_path_factory.mktemp("work"))


@pytest.fixture
def resident(cache) -> Bank:
    bank = load_bank(cache, "low", cache.dataset.half(1, "train"), RULE, CPU)
    assert isinstance(bank, Bank)
    return bank


@pytest.fixture(params=["the cache", "main memory"])
def streamed(request, cache, resident, monkeypatch) -> StreamedBank:
    if request.param == "main memory":
        read = from_memory(resident.features_VFC, resident.clips.frames_NT)
        return StreamedBank(resident.clips, resident.num_views, CPU, read)
    monkeypatch.setattr(train.clips, "available_bytes", lambda: 1000)
    bank = load_bank(cache, "low", cache.dataset.half(1, "train"), RULE, CPU)
    assert isinstance(bank, StreamedBank)
    return bank


def test_batches_are_those_of_the_bank_in_memory(resident, streamed):
    generator = torch.Generator().manual_seed(0)
    clip_N = torch.randperm(len(resident), generator=generator)
    view_N = torch.randint(2, (len(resident),), generator=generator)
    streamed.announce(zip(clip_N.split(5), view_N.split(5), strict=True))
    for clip_B, view_B in zip(clip_N.split(5), view_N.split(5), strict=True):
        assert torch.equal(streamed.gather(clip_B, view_B), resident.gather(clip_B, view_B))
    assert torch.equal(streamed.label_N, resident.label_N)


def test_a_new_announcement_replaces_the_old_one(resident, streamed):
    every = torch.arange(len(resident))
    streamed.announce((clip_B, torch.zeros_like(clip_B)) for clip_B in every.split(5))
    streamed.announce((clip_B, torch.ones_like(clip_B)) for clip_B in every.flip(0).split(7))
    first = every.flip(0)[:7]
    assert torch.equal(streamed.gather(first, torch.ones(7).long()), resident.gather(first, torch.ones(7).long()))


@pytest.mark.parametrize("changes", [{}, {"feature_noise": 0.3}, {"mixup": 0.4}], ids=str)
def test_training_gives_the_same_bits(resident, streamed, changes):
    trainers = [make_trainer(bank, replace(RECIPE, **changes)) for bank in (resident, streamed)]
    losses = [[tick.loss for tick in trainer.run(tick_seconds=1e9)] for trainer in trainers]
    assert losses[0] == losses[1]
    assert same(weights(trainers[0]), weights(trainers[1]))


def test_a_state_in_the_middle_of_an_epoch_goes_on_with_the_right_batches(resident, streamed):
    whole = make_trainer(resident)
    list(whole.run())
    first = make_trainer(streamed)
    ticks = first.run(tick_seconds=0)
    for _ in range(first.steps_per_epoch + 2):
        next(ticks)
    tensors, position = first.state()
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    second = make_trainer(streamed)
    second.restore(tensors, position)
    list(second.run())
    assert same(weights(whole), weights(second))


def test_features_that_are_not_finite_name_the_video(resident):
    features_VFC = resident.features_VFC.clone()
    features_VFC[:, resident.frames_NT[3, 7]] = float("nan")
    bank = StreamedBank(resident.clips, 2, CPU, from_memory(features_VFC, resident.clips.frames_NT))
    video = resident.clips.sample_ids[resident.clips.sample_N[3]]
    with pytest.raises(TrainingError, match=video):
        list(make_trainer(bank, replace(RECIPE, epochs=1)).run())


def test_statistics_are_those_of_all_clips_in_all_views(resident):
    mean_C, deviation_C = channel_statistics(resident)
    x_VNTC = resident.features_VFC[:, resident.frames_NT].double().numpy()
    np.testing.assert_allclose(mean_C, x_VNTC.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(deviation_C, x_VNTC.std((0, 1, 2)), rtol=1e-12)


def test_statistics_of_a_streamed_bank_have_the_same_bits(resident, streamed):
    for mine, theirs in zip(channel_statistics(resident), channel_statistics(streamed), strict=True):
        assert torch.equal(mine, theirs)


def test_statistics_bear_constant_channels_and_means_far_from_zero(resident):
    features_VFC = torch.rand(resident.features_VFC.shape).half()
    features_VFC[..., 0], features_VFC[..., 1] = 0.1, 60_000
    features_VFC[0, resident.frames_NT[0, 0], 1] = 59_968
    mean_C, deviation_C = channel_statistics(replace(resident, features_VFC=features_VFC))
    assert deviation_C[0] == 0
    expected = features_VFC[:, resident.frames_NT, 1].double().numpy()
    np.testing.assert_allclose([mean_C[1], deviation_C[1]], [expected.mean(), expected.std()], rtol=1e-12)
