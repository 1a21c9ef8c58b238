"""Heads: logits for every cell and pooling; equations 8 and 9 against their words."""

import pytest
import torch

from cache.common.errors import TrainingError
from train.heads import Head, moments
from train.recipes import AVERAGING, CELLS, POOLS, Recipe


def make_head(cell="sru", pool="mean", **changes) -> Head:
    torch.manual_seed(0)
    return Head(6, 4, Recipe(hidden=5, layers=2, cell=cell, **changes), pool)


def step_logits(head: Head, x_TBC: torch.Tensor) -> torch.Tensor:
    h_TBD = head.cell(x_TBC)
    return h_TBD @ head.linear.weight.t() + head.linear.bias


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("pool", POOLS)
def test_every_combination_gives_logits_of_each_clip_and_gradients_everywhere(cell, pool):
    if cell in AVERAGING and pool != "mean":
        with pytest.raises(TrainingError, match="--pool mean"):
            make_head(cell, pool)
        return
    head = make_head(cell, pool)
    logits_BK = head(torch.randn(7, 3, 6))
    assert logits_BK.shape == (3, 4)
    logits_BK.sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_mean_pooling_is_equation_8():
    head, x_TBC = make_head(pool="mean").eval(), torch.randn(7, 3, 6)
    logits_TBK = step_logits(head, x_TBC)
    exponents_BK = (logits_TBK.sum(dim=0) / 7).exp()
    expected = exponents_BK / exponents_BK.sum(dim=1, keepdim=True)
    torch.testing.assert_close(head(x_TBC).softmax(dim=1), expected)


def test_max_pooling_is_equation_9():
    head, x_TBC = make_head(pool="max").eval(), torch.randn(7, 3, 6)
    logits_TBK = step_logits(head, x_TBC)
    expected = logits_TBK.max(dim=0).values.exp() / logits_TBK.max(dim=0).values.exp().sum(dim=1, keepdim=True)
    torch.testing.assert_close(head(x_TBC).softmax(dim=1), expected)


def test_attention_pooling_is_a_weighted_mean_that_adds_to_one():
    head, x_TBC = make_head(pool="attention").eval(), torch.randn(7, 3, 6)
    logits_TBK = step_logits(head, x_TBC)
    low, high = logits_TBK.amin(dim=0), logits_TBK.amax(dim=0)
    logits_BK = head(x_TBC)
    assert ((low - 1e-6 <= logits_BK) & (logits_BK <= high + 1e-6)).all()
    with torch.no_grad():
        head.attention.weight.zero_()
    torch.testing.assert_close(head(x_TBC), logits_TBK.mean(dim=0))


def test_recurrent_outputs_pass_tanh_before_the_linear_layer():
    h_TBD = make_head().eval().cell(100 * torch.randn(7, 3, 6))
    assert h_TBD.abs().max() <= 1


@pytest.mark.parametrize("cell", ["sru", "lstm", "gru"])
def test_the_order_of_frames_matters_to_recurrent_cells(cell):
    head, x_TBC = make_head(cell).eval(), torch.randn(7, 3, 6)
    assert not torch.allclose(head(x_TBC), head(x_TBC.flip(0)), atol=1e-4)


def test_the_order_of_frames_does_not_matter_to_averaging():
    head, x_TBC = make_head("mean").eval(), torch.randn(7, 3, 6)
    torch.testing.assert_close(head(x_TBC), head(x_TBC.flip(0)))


@pytest.mark.parametrize("cell", CELLS)
def test_dropout_acts_in_training_only(cell):
    head, x_TBC = make_head(cell, variational_dropout=0.5), torch.randn(7, 3, 6)
    assert not torch.equal(head.train()(x_TBC), head(x_TBC))
    assert torch.equal(head.eval()(x_TBC), head(x_TBC))


def test_a_head_of_standardised_inputs_takes_raw_features():
    head, x_TBC = make_head(inputs="standardised").eval(), 3 + 5 * torch.randn(7, 3, 6)
    mean_C, deviation_C = x_TBC.double().mean((0, 1)), x_TBC.double().std((0, 1))
    head.standardise_by(mean_C, deviation_C)
    raw = make_head().eval()
    raw.load_state_dict(head.state_dict(), strict=False)
    torch.testing.assert_close(head(x_TBC), raw(((x_TBC - mean_C) / deviation_C).float()))


def test_a_shortcut_adds_the_logits_of_the_mean_input_and_starts_at_nothing():
    head, x_TBC = make_head(shortcut="mean").eval(), torch.randn(7, 3, 6)
    before_BK = head(x_TBC)
    torch.testing.assert_close(before_BK, step_logits(head, x_TBC).mean(dim=0))
    torch.nn.init.normal_(head.shortcut.weight)
    torch.testing.assert_close(head(x_TBC), before_BK + x_TBC.mean(dim=0) @ head.shortcut.weight.t())


def test_moments_are_mean_deviation_step_and_slope():
    x_TBC = torch.tensor([[[1.0, 5.0]], [[3.0, 5.0]], [[2.0, 5.0]]])
    found = moments(x_TBC)
    torch.testing.assert_close(found, torch.tensor([[2.0, 5.0, (2 / 3) ** 0.5, 0.0, 1.5, 0.0, 1 / 3, 0.0]]))
    assert moments(x_TBC[:1]).tolist() == [[1.0, 5.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize("cell", ["sru", "mean"])
def test_a_shortcut_past_the_cell_sees_the_standardised_moments_of_raw_features(cell):
    head, x_TBC = make_head(cell, shortcut="moments", inputs="standardised").eval(), 3 + 5 * torch.randn(7, 9, 6)
    before_BK = head(x_TBC)
    moment_BM = moments(x_TBC)
    head.shortcut.standardise_by(moment_BM.double().mean(0), moment_BM.double().std(0, correction=0))
    torch.nn.init.normal_(head.shortcut.linear.weight)
    standard_BM = (moment_BM - moment_BM.mean(0)) / moment_BM.std(0, correction=0)
    torch.testing.assert_close(head(x_TBC), before_BK + standard_BM @ head.shortcut.linear.weight.t())


def test_moments_of_a_channel_that_float16_merely_rounds_say_nothing():
    shortcut = make_head(shortcut="moments").shortcut
    clip_NT6 = torch.randn(50, 7, 6)
    clip_NT6[:, :, 0] = 8 + 1e-3 * clip_NT6[:, :, 0]
    moment_NM = moments(clip_NT6.transpose(0, 1)).double()
    shortcut.standardise_by(moment_NM.mean(0), moment_NM.std(0))
    assert (shortcut.scale_M.view(4, 6) == 0).tolist() == [[True, *[False] * 5]] * 4


def test_input_dropout_zeroes_the_same_channels_at_all_steps_in_training_only():
    head, x_TBC = make_head(input_dropout=0.5, variational_dropout=0.0), torch.ones(7, 3, 6)
    seen = []
    head.cell.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    head.train()(x_TBC)
    assert set(seen[0].unique().tolist()) == {0.0, 2.0}
    assert torch.equal(seen[0], seen[0][:1].expand_as(seen[0]))
    head.eval()(x_TBC)
    assert torch.equal(seen[1], x_TBC)


def test_a_channel_that_was_constant_in_training_says_nothing():
    head, x_TBC = make_head(inputs="standardised").eval(), torch.randn(7, 3, 6)
    # Exactly constant, zero throughout, and constant but for the last bit of a float16.
    mean_C, deviation_C = torch.zeros(6).double(), torch.ones(6).double()
    mean_C[:3], deviation_C[:3] = torch.tensor([7.0, 0.0, 8.0]), torch.tensor([0.0, 0.0, 1e-5])
    head.standardise_by(mean_C, deviation_C)
    other_TBC = x_TBC.clone()
    other_TBC[:, :, :3] = 1e4
    torch.testing.assert_close(head(other_TBC), head(x_TBC))
    assert torch.isfinite(head(x_TBC)).all()
