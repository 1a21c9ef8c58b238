"""`linear`: multinomial logistic regression on the mean feature of each training sample, the baseline of every head.

Fitted in float64 to its one optimum, so that it depends on no seed. Shapes: N means, C channels, K classes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from cache.common.errors import TrainingError
from cache.dataset import Sample
from train.clips import ClipBank, whole_bank
from train.heads import NEVER, Head, scale_of
from train.split import FIFTHS, split_off

STRENGTHS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Strengths of the penalty to choose from, the strongest first: each fit starts from the one before."""

_USUAL_STRENGTH = 0.1
"""Where nothing can be held out, because a class has a single group."""

_WORTH_THREADS = 100_000_000
"""Multiplications of a product from which on several threads are used."""

_ALL_TURNS_BELOW = 2_000
"""Means below which every fifth is held out in turn; with more of them one fifth is enough to choose by."""


def fit_linear(head: Head, bank: ClipBank, samples: Sequence[Sample]) -> float:
    """Fit a head of the cell `linear` to `bank`, the clips of `samples`. Returns the strength of the penalty.

    The strength is the one with the least log loss on held-out groups of `samples`; statistics and weights then come
    from all of them.
    """
    mean_NC, sample_N, label_N = sample_means(bank)
    with one_thread(if_small=mean_NC.numel() * head.classes):
        return _fit_means(head, mean_NC, sample_N, label_N, samples)


@contextmanager
def one_thread(*, if_small: int) -> Iterator[None]:
    """Keep torch to one thread if products of so many multiplications are small: several mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if if_small < _WORTH_THREADS else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _fit_means(head: Head, mean_NC: Tensor, sample_N: Tensor, label_N: Tensor, samples: Sequence[Sample]) -> float:
    # The bias of a class without training samples would fall for ever, so such classes get no weights at all.
    present_K, label_N = label_N.unique(return_inverse=True)
    strength = _choose_strength(mean_NC, sample_N, label_N, len(present_K), samples)
    with torch.no_grad():
        head.standardise_by(*_statistics(mean_NC))
        weights_KC, bias_K = fit(head.standardise(mean_NC), label_N, len(present_K), strength)
        head.linear.weight.zero_()[present_K] = weights_KC.float()
        head.linear.bias.fill_(float(bias_K.min()) - NEVER)[present_K] = bias_K.float()
    return strength


def sample_means(bank: ClipBank) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the mean of each sample's clips in each view, float64 `[N, C]`, the sample's index, and its label."""
    samples = len(bank.clips.sample_ids)
    sample_of_clip, label_of_clip = torch.from_numpy(bank.clips.sample_N), torch.from_numpy(bank.clips.label_N)
    label_of_sample = torch.zeros(samples, dtype=torch.int64)
    label_of_sample[sample_of_clip] = label_of_clip
    sums: list[Tensor] = []
    for clip_B, view, x_TBC in whole_bank(bank):
        if view == len(sums):
            sums.append(torch.zeros(samples, x_TBC.shape[2], dtype=torch.float64))
        # On the CPU, because a GPU would add them up in any order.
        sums[view].index_add_(0, sample_of_clip[clip_B], x_TBC.double().mean(dim=0).cpu())
    mean_NC = torch.cat(sums) / torch.bincount(sample_of_clip, minlength=samples).repeat(len(sums))[:, None]
    sample_N = torch.arange(samples).repeat(len(sums))
    device = bank.label_N.device
    return mean_NC.to(device), sample_N.to(device), label_of_sample[sample_N].to(device)


def fit(
    x_NC: Tensor,
    label_N: Tensor,
    classes: int,
    strength: float,
    *,
    start: tuple[Tensor, Tensor] | None = None,
    tolerance: float = 1e-8,
) -> tuple[Tensor, Tensor]:
    """Returns the weights `[K, C]` and biases `[K]` that minimise mean cross-entropy + strength / 2 * sum of weights².

    That is scikit-learn's LogisticRegression with C = 1 / (N * strength). L-BFGS in the dtype of `x_NC`, until no
    gradient is above `tolerance`.
    """
    weights_KC, bias_K = start or (x_NC.new_zeros(classes, x_NC.shape[1]), x_NC.new_zeros(classes))
    parameters = [each.clone().requires_grad_() for each in (weights_KC, bias_K)]
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=1000,
        history_size=20,
        tolerance_grad=tolerance,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        weights_KC, bias_K = parameters
        value = F.cross_entropy(x_NC @ weights_KC.t() + bias_K, label_N) + strength / 2 * weights_KC.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return parameters[0].detach(), parameters[1].detach()


def _choose_strength(
    mean_NC: Tensor, sample_N: Tensor, label_N: Tensor, classes: int, samples: Sequence[Sample]
) -> float:
    """Returns the strength with the least log loss on held-out groups. Stops at the first one that is worse."""
    try:
        folds = [*_folds(mean_NC, sample_N, label_N, samples)]
    except TrainingError:
        return _USUAL_STRENGTH
    starts: list[tuple[Tensor, Tensor] | None] = [None] * len(folds)
    best, least = STRENGTHS[0], float("inf")
    for strength in STRENGTHS:
        total = 0.0
        for turn, (x_NC, inside_N, held_x_NC, held_N) in enumerate(folds):
            fitted = fit(x_NC, inside_N, classes, strength, start=starts[turn], tolerance=1e-4)
            starts[turn], (weights_KC, bias_K) = fitted, fitted
            total += float(F.cross_entropy(held_x_NC @ weights_KC.t() + bias_K, held_N, reduction="sum"))
        if total > least:
            break
        best, least = strength, total
    return best


def _folds(
    mean_NC: Tensor, sample_N: Tensor, label_N: Tensor, samples: Sequence[Sample]
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Standardised means and labels of what is inside, and of what is held out, for each turn."""
    for turn in range(FIFTHS if len(mean_NC) < _ALL_TURNS_BELOW else 1):
        held_out = {sample.id for sample in split_off(samples, turn)[1]}
        is_held = torch.tensor([sample.id in held_out for sample in samples], device=mean_NC.device)[sample_N]
        mean_C, deviation_C = _statistics(mean_NC[~is_held])
        x_NC = (mean_NC - mean_C) * scale_of(mean_C, deviation_C)
        yield x_NC[~is_held], label_N[~is_held], x_NC[is_held], label_N[is_held]


def _statistics(mean_NC: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel. The deviation of a constant channel is 0."""
    return mean_NC.mean(dim=0), torch.where((mean_NC == mean_NC[0]).all(dim=0), 0, mean_NC.std(dim=0, correction=0))
