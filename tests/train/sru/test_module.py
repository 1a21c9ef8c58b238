"""The SRU module: parameters, dropout, state, dtypes, refusals; the same numbers from each backend."""

import pytest
import torch

from cache.common.errors import TrainingError
from train.sru import SRU, reference


def sru_and_input(*, input_size=6, hidden_size=5, num_layers=3, steps=7, batch=4, dtype=torch.float64, **options):
    torch.manual_seed(3)
    module = SRU(input_size, hidden_size, num_layers, **options).to(dtype)
    for bias in module.biases:
        torch.nn.init.normal_(bias)
    return module, torch.randn(steps, batch, input_size, dtype=dtype, requires_grad=True)


def outputs_and_gradients(module, x, c0=None):
    h, c = module(x, c0)
    loss = (h * torch.linspace(-1, 1, h.numel()).view(h.shape)).sum() + c.square().sum()
    return [h, c, *torch.autograd.grad(loss, [x, *module.parameters()])]


@pytest.mark.parametrize("input_size", [5, 6], ids=["C = D", "C ≠ D"])
def test_backends_agree_on_outputs_and_every_gradient(input_size):
    module, x = sru_and_input(input_size=input_size)
    c0 = torch.randn(3, 4, 5, dtype=torch.float64)
    module.backend = "reference"
    expected = outputs_and_gradients(module, x, c0)
    module.backend = "cpu"
    for ours, theirs in zip(outputs_and_gradients(module, x, c0), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


def test_a_layer_of_the_module_is_the_reference_layer():
    module, x = sru_and_input(num_layers=1)
    h, c = module(x)
    theirs = reference.layer(x, module.weights[0], module.biases[0], x.new_zeros(4, 5))
    torch.testing.assert_close((h, c[0]), theirs)


def test_shapes_and_default_state():
    module, x = sru_and_input()
    h, c = module(x)
    assert h.shape == (7, 4, 5)
    assert c.shape == (3, 4, 5)
    assert torch.equal(h, module(x, torch.zeros(3, 4, 5, dtype=torch.float64))[0])


def test_the_last_states_continue_a_sequence():
    module, x = sru_and_input()
    whole, last = module(x)
    first, c = module(x[:3])
    second, c = module(x[3:], c)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(c, last)


def test_input_need_not_be_contiguous():
    module, x = sru_and_input()
    turned = x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    assert not turned.is_contiguous()
    for ours, theirs in zip(outputs_and_gradients(module, turned), outputs_and_gradients(module, x), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_weights_start_orthogonal_gate_by_gate_and_biases_at_zero():
    torch.manual_seed(0)
    module = SRU(12, 8, num_layers=2)
    assert [tuple(weight.shape) for weight in module.weights] == [(4, 8, 12), (3, 8, 8)]
    for weight_GDC in module.weights:
        for weight_DC in weight_GDC:
            torch.testing.assert_close(weight_DC @ weight_DC.T, torch.eye(8))
    assert all(not bias.any() for bias in module.biases)


def test_the_same_seed_gives_the_same_bits():
    def train_once():
        module, x = sru_and_input(dtype=torch.float32, dropout=0.2, variational_dropout=0.5)
        return outputs_and_gradients(module, x)

    assert all(torch.equal(one, two) for one, two in zip(train_once(), train_once(), strict=True))


def test_variational_dropout_masks_whole_sequences_and_spares_the_highway():
    torch.manual_seed(1)
    module = SRU(64, 64, variational_dropout=0.5)
    with torch.no_grad():
        module.biases[0][1] = -100.0  # the reset gate shut: h is the highway term alone
    x = torch.randn(5, 3, 64)
    h, _ = module(x)
    assert torch.equal(h, x)

    steady = SRU(64, 64, variational_dropout=0.5)
    ones = torch.ones(5, 3, 64, requires_grad=True)
    _, c = steady(ones)
    (seen,) = torch.autograd.grad(c.sum(), ones)
    dropped = seen == 0
    assert torch.equal(dropped, dropped[:1].expand_as(dropped))
    assert not torch.equal(dropped[0, 0], dropped[0, 1])
    assert 0.3 < dropped.float().mean() < 0.7


def test_no_dropout_outside_training():
    module, x = sru_and_input(dropout=0.5, variational_dropout=0.5)
    assert not torch.equal(module(x)[0], module(x)[0])
    module.eval()
    assert torch.equal(module(x)[0], module(x)[0])


def test_dropout_between_layers_leaves_the_last_output_alone():
    module, x = sru_and_input(num_layers=1, dropout=0.9)
    assert torch.equal(module(x)[0], module(x)[0])


def test_autocast_computes_products_in_bf16_and_keeps_the_state_in_float32():
    module, x = sru_and_input(dtype=torch.float32, input_size=32, hidden_size=32)
    exact = outputs_and_gradients(module, x)
    with torch.autocast("cpu", torch.bfloat16):
        h, c = module(x)
    assert (h.dtype, c.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(h.float(), exact[0], atol=0.05, rtol=0.05)
    h.float().sum().backward()
    assert all(
        parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in module.parameters()
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backend": "cuda"}, "choose one of auto, reference, cpu, triton"),
        ({"num_layers": 0}, "at least 1"),
        ({"variational_dropout": 1.0}, "probability"),
    ],
)
def test_unusable_settings_are_refused(options, words):
    with pytest.raises(TrainingError, match=words):
        SRU(4, 4, **options)


@pytest.mark.parametrize(
    ("x_size", "c0_size", "words"),
    [
        ((3, 2, 7), None, "expected .steps, sequences, 6."),
        ((3, 6), None, "expected .steps, sequences, 6."),
        ((0, 2, 6), None, "at least one step"),
        ((3, 2, 6), (2, 2, 5), "expected .3, 2, 5."),
    ],
)
def test_wrong_shapes_are_refused(x_size, c0_size, words):
    module, _ = sru_and_input()
    c0 = None if c0_size is None else torch.zeros(c0_size, dtype=torch.float64)
    with pytest.raises(TrainingError, match=words):
        module(torch.zeros(x_size, dtype=torch.float64), c0)


def test_a_backend_for_another_device_is_refused():
    module, x = sru_and_input(backend="triton")
    with pytest.raises(TrainingError, match="CUDA device"):
        module(x)
    with pytest.raises(TrainingError, match="reference"):
        SRU(4, 4).to("meta")(torch.zeros(1, 1, 4, device="meta"))
    with pytest.raises(TrainingError, match="auto"):
        SRU(4, 4, backend="cpu").to("meta")(torch.zeros(1, 1, 4, device="meta"))


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_a_compiler_leaves_the_kernels_as_they_are(compiler):
    module, x = sru_and_input(variational_dropout=0.0)
    compiled = torch.compile(module, backend=compiler)
    expected = outputs_and_gradients(module, x)
    for ours, theirs in zip(outputs_and_gradients(compiled, x), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
