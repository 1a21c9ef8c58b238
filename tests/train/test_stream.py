"""Streamed banks: the batches, and so the training, of a bank in memory, bit for bit."""

from dataclasses import replace

import pytest
import torch

import train.clips
from cache.clips import ClipRule
from cache.common.errors import TrainingError
from tests.helpers.train import trainable_cache
from tests.train.test_trainer import RECIPE, make_trainer, same, weights
from train.clips import Bank, StreamedBank, from_memory, load_bank

CPU = torch.device("cpu")
RULE = ClipRule(length=30, stride=4)


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


def test_training_gives_the_same_bits(resident, streamed):
    trainers = [make_trainer(bank) for bank in (resident, streamed)]
    losses = [[tick.loss for tick in trainer.run()] for trainer in trainers]
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
    video = resident.clips.video_ids[resident.clips.video_N[3]]
    with pytest.raises(TrainingError, match=video):
        list(make_trainer(bank, replace(RECIPE, epochs=1)).run())
