"""The loop: what it learns, that it is the same each time, and that it stops before a step that is not finite."""

from dataclasses import replace

import pytest
import torch

from cache.clips import ClipRule
from cache.common.errors import TrainingError
from tests.helpers.train import trainable_cache
from train.clips import Bank, load_bank
from train.heads import Head
from train.recipes import RECIPES, Recipe
from train.trainer import Trainer

RECIPE = replace(RECIPES["small"], hidden=12, layers=2, epochs=4, min_steps=0, batch=7)


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Bank:
    cache = trainable_cache(tmp_path_factory.mktemp("work"))
    return load_bank(cache, "low", cache.dataset.half(1, "train"), ClipRule(), torch.device("cpu"))


def make_trainer(bank: Bank, recipe: Recipe = RECIPE, seed: int = 0) -> Trainer:
    torch.manual_seed(seed)
    head = Head(128, 3, recipe)
    return Trainer(head, bank, recipe, "low", seed)


def weights(trainer: Trainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.head.parameters()]


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_it_learns(bank):
    rates = dict.fromkeys(("low", "mid", "high"), 1e-2)
    trainer = make_trainer(bank, replace(RECIPE, epochs=15, learning_rate=rates))
    ticks = [tick for tick in trainer.run() if tick.ended]
    assert len(ticks) == 15
    assert ticks[-1].loss < 0.3 * ticks[0].loss
    assert ticks[-1].accuracy > 0.9
    assert ticks[0].clips == len(bank)


def test_same_seed_same_bits_other_seed_other_bits(bank):
    first, again, other = make_trainer(bank), make_trainer(bank), make_trainer(bank, seed=1)
    for trainer in (first, again, other):
        list(trainer.run())
    assert same(weights(first), weights(again))
    assert not same(weights(first), weights(other))


def test_looking_at_every_step_changes_nothing(bank):
    often, seldom = make_trainer(bank), make_trainer(bank)
    assert len(list(often.run(tick_seconds=0))) == often.steps_per_epoch * 4
    assert len(list(seldom.run(tick_seconds=1e9))) == 4
    assert same(weights(often), weights(seldom))


def test_every_clip_is_seen_once_an_epoch_in_a_new_order_and_a_random_view(bank):
    trainer = make_trainer(bank)
    orders = []
    for trainer.epoch in (0, 1):
        clip_N, view_N = trainer._order()
        assert sorted(clip_N.tolist()) == list(range(len(bank)))
        assert set(view_N.tolist()) == {0, 1}
        orders.append((clip_N.tolist(), view_N[clip_N.argsort()].tolist()))
    assert orders[0][0] != orders[1][0]
    assert orders[0][1] != orders[1][1]


@pytest.mark.parametrize("stop_after", [1, 3, 7])
def test_a_state_put_into_another_trainer_goes_on_to_the_same_bits(bank, stop_after):
    whole = make_trainer(bank)
    expected = [(tick.epoch, tick.loss) for tick in whole.run() if tick.ended]
    first = make_trainer(bank)
    ticks = first.run(tick_seconds=0)
    for _ in range(stop_after):
        next(ticks)
    tensors, position = first.state()
    second = make_trainer(bank, seed=0)
    torch.manual_seed(99)
    second.restore({name: tensor.clone() for name, tensor in tensors.items()}, position)
    rest = [(tick.epoch, tick.loss) for tick in second.run() if tick.ended]
    assert rest == expected[-len(rest) :]
    assert same(weights(whole), weights(second))


def test_a_step_that_is_not_finite_is_not_taken_and_is_named(bank):
    trainer = make_trainer(bank)
    poisoned = replace(bank, features_VFC=bank.features_VFC.clone())
    clip_N, view_N = trainer._order()
    step = 2
    clip = int(clip_N[step * RECIPE.batch])
    poisoned.features_VFC[int(view_N[step * RECIPE.batch]), poisoned.frames_NT[clip, 3]] = float("nan")
    trainer = make_trainer(poisoned)
    with pytest.raises(TrainingError, match=r"step [012] of epoch 0") as caught:
        list(trainer.run(tick_seconds=1e9))
    assert "loss" in str(caught.value)
    stopped_at = int(str(caught.value).split("step ")[1].split()[0])
    reference = make_trainer(bank)
    steps = reference.run(tick_seconds=0)
    for _ in range(stopped_at):
        next(steps)
    assert same(weights(trainer), weights(reference))
    assert all(torch.isfinite(each).all() for each in weights(trainer))


def test_a_learning_rate_that_is_far_too_high_stops_with_advice(bank):
    recipe = replace(RECIPE, learning_rate={"low": 1e38, "mid": 1e38, "high": 1e38})
    trainer = make_trainer(bank, recipe)
    with pytest.raises(TrainingError, match="--lr"):
        list(trainer.run())
