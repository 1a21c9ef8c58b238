"""What training does to features and targets: how much, by what chance, and that nothing is what it says it is."""

from dataclasses import replace

import pytest
import torch

from cache.common.errors import TrainingError
from tests.train.test_trainer import RECIPE, bank, make_trainer, same, weights  # noqa: F401
from train.steps import EagerStep, add_noise, class_weights, mix
from train.trainer import balanced_order


def test_nothing_asked_for_changes_nothing_and_draws_nothing():
    x, label = torch.randn(3, 4, 5), torch.tensor([0, 1, 2, 0])
    before = torch.get_rng_state()
    assert add_noise(x, 0.0) is x
    assert mix(x, label, 0.0, 3) == (x, label)
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_multiplies_each_feature_by_its_own_draw_around_1():
    torch.manual_seed(0)
    factor = add_noise(torch.full((40, 30, 50), 3.0), 0.2) / 3
    assert factor.mean() == pytest.approx(1, abs=0.005)
    assert factor.std() == pytest.approx(0.2, rel=0.02)
    assert not torch.equal(factor[0], factor[1])
    assert not add_noise(torch.zeros(2, 2, 2), 0.2).any()


def test_features_and_target_are_blended_by_the_same_share_of_the_next_clip():
    torch.manual_seed(0)
    label = torch.arange(5)
    x = torch.eye(5).expand(7, 5, 5)  # each clip is its own class's direction
    mixed, target = mix(x, label, 0.4, 5)
    assert mixed.shape == x.shape
    for step in mixed:
        torch.testing.assert_close(step, target)
    share = target[label, (label - 1) % 5]
    assert ((share >= 0) & (share < 0.4)).all()
    assert len(share.unique()) == 5
    torch.testing.assert_close(target.sum(dim=1), torch.ones(5))
    assert torch.equal(target.argmax(dim=1), label)


def test_shares_are_evenly_drawn():
    torch.manual_seed(0)
    _, target = mix(torch.zeros(1, 2000, 1), torch.arange(2000) % 2, 0.5, 2)
    share = target.min(dim=1).values
    assert share.mean() == pytest.approx(0.25, abs=0.01)
    assert share.max() > 0.49


def test_weighted_classes_weigh_the_same_and_clips_1_on_average():
    label = torch.tensor([0] * 8 + [2] * 2)
    weight = class_weights(label, 4)
    torch.testing.assert_close(weight, torch.tensor([0.625, 0.0, 2.5, 0.0]))
    assert weight[label].mean() == pytest.approx(1)


def test_balance_in_the_loss_is_the_plain_loss_of_clips_repeated_until_classes_are_equal(bank):  # noqa: F811
    label_N = bank.label_N.clone()
    label_N[:6] = 1  # three classes of different size
    uneven = replace(bank, label_N=label_N)
    trainer = make_trainer(uneven, replace(RECIPE, balance="loss", variational_dropout=0.0))
    step = trainer.take_step
    assert isinstance(step, EagerStep)
    clip_N = torch.arange(len(bank))
    loss, logits_NK = step._backward(clip_N, torch.zeros_like(clip_N), label_N, len(bank))
    of_class = [torch.nn.functional.cross_entropy(logits_NK[label_N == k], label_N[label_N == k]) for k in range(3)]
    assert len(label_N.bincount().unique()) > 1
    torch.testing.assert_close(loss, torch.stack(of_class).mean())


def test_drawn_classes_come_equally_often_and_every_clip_has_its_turn():
    label = torch.tensor([0] * 50 + [1] * 7 + [2] * 4)
    seen = torch.zeros(61, dtype=torch.int64)
    for epoch in range(40):
        order = balanced_order(label, torch.Generator().manual_seed(epoch))
        again = balanced_order(label, torch.Generator().manual_seed(epoch))
        assert torch.equal(order, again)
        drawn = order.bincount(minlength=61)
        assert sorted(label[order].bincount().tolist()) == [20, 20, 21]
        for number in range(3):
            assert drawn[label == number].max() - drawn[label == number].min() <= 1
        seen += drawn
    assert seen.min() > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"feature_noise": 0.3},
        {"mixup": 0.4},
        {"label_smoothing": 0.1, "mixup": 0.2, "balance": "loss"},
        {"balance": "sample"},
    ],
)
def test_training_with_it_learns_differs_and_is_continued_to_the_same_bits(bank, changes):  # noqa: F811
    recipe = replace(RECIPE, **changes)
    label_N = bank.label_N.clone()
    label_N[:6] = 1  # classes of different size
    bank = replace(bank, label_N=label_N, clips=replace(bank.clips, label_N=label_N.numpy()))
    plain, whole, first = make_trainer(bank), make_trainer(bank, recipe), make_trainer(bank, recipe)
    list(plain.run())
    losses = [tick.loss for tick in whole.run() if tick.ended]
    assert losses[-1] < losses[0]
    assert not same(weights(plain), weights(whole))
    ticks = first.run(tick_seconds=0)
    for _ in range(first.steps_per_epoch + 2):
        next(ticks)
    tensors, position = first.state()
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    second = make_trainer(bank, recipe)
    torch.manual_seed(99)
    second.restore(tensors, position)
    list(second.run())
    assert same(weights(whole), weights(second))


def test_a_share_above_a_half_is_refused():
    with pytest.raises(TrainingError, match="mixup"):
        replace(RECIPE, mixup=0.6)
