"""`linear`: the optimum that scikit-learn finds, a penalty chosen on held-out groups, and a run like any other."""

import numpy as np
import pytest
import torch

import train.linear
from cache.clips import ClipRule
from cache.common.errors import TrainingError
from cache.store import FeatureCache
from tests.helpers.train import grouped_dataset, trainable_cache
from train.clips import Bank, StreamedBank, from_memory, load_bank
from train.heads import Head
from train.linear import STRENGTHS, fit, fit_linear, sample_means
from train.recipes import RECIPES
from train.score import score_clips

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    return trainable_cache(tmp_path_factory.mktemp("work"), grouped_dataset(classes=4, groups=6))


@pytest.fixture
def bank(cache: FeatureCache) -> Bank:
    bank = load_bank(cache, "low", cache.dataset.half(1, "train"), ClipRule(), CPU)
    assert isinstance(bank, Bank)
    return bank


def fitted(bank, videos) -> tuple[Head, float]:
    head = Head(128, 4, RECIPES["linear"])
    return head.eval(), fit_linear(head, bank, videos)


def test_at_the_optimum_nothing_pulls():
    generator = torch.Generator().manual_seed(0)
    x_NC, label_N = torch.randn(60, 9, dtype=torch.float64, generator=generator), torch.arange(60) % 4
    weights_KC, bias_K = fit(x_NC, label_N, 4, 0.02)
    error_NK = torch.softmax(x_NC @ weights_KC.t() + bias_K, dim=1) - torch.nn.functional.one_hot(label_N, 4)
    torch.testing.assert_close(error_NK.t() @ x_NC / 60, -0.02 * weights_KC, rtol=0, atol=1e-7)
    torch.testing.assert_close(error_NK.mean(dim=0), torch.zeros(4).double(), rtol=0, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("strength", [0.3, 0.003])
def test_the_optimum_is_scikit_learns(strength):
    from sklearn.linear_model import LogisticRegression

    generator = np.random.default_rng(0)
    x_NC, label_N = generator.normal(size=(90, 20)), generator.integers(5, size=90)
    weights_KC, bias_K = fit(torch.from_numpy(x_NC), torch.from_numpy(label_N), 5, strength)
    peer = LogisticRegression(C=1 / (90 * strength), tol=1e-8, max_iter=10_000).fit(x_NC, label_N)
    mine = torch.softmax(torch.from_numpy(x_NC) @ weights_KC.t() + bias_K, dim=1)
    np.testing.assert_allclose(weights_KC, peer.coef_, atol=1e-5)
    np.testing.assert_allclose(mine, peer.predict_proba(x_NC), atol=1e-5)


def test_means_are_of_all_clips_of_a_video_in_each_view(bank):
    mean_NC, sample_N, label_N = sample_means(bank)
    videos = len(bank.clips.sample_ids)
    assert sample_N.tolist() == 2 * list(range(videos))
    for row in (0, 3, videos + 5):
        clips = np.flatnonzero(bank.clips.sample_N == row % videos)
        expected_C = bank.features_VFC[row // videos, bank.frames_NT[clips]].double().mean(dim=(0, 1))
        torch.testing.assert_close(mean_NC[row], expected_C)
        assert label_N[row] == bank.clips.label_N[clips[0]]


def test_it_learns_and_its_head_takes_raw_clips_like_any_other(cache, bank):
    head, strength = fitted(bank, cache.dataset.half(1, "train"))
    assert strength in STRENGTHS
    test = load_bank(cache, "low", cache.dataset.half(1, "test"), ClipRule(), CPU, views=[0])
    softmax_NK = score_clips(head, test.features_VFC[0], test.clips.frames_NT)
    assert (softmax_NK.argmax(axis=1) == test.clips.label_N).mean() > 0.9


def test_a_streamed_bank_gives_the_same_bits(cache, bank):
    videos = cache.dataset.half(1, "train")
    streamed = StreamedBank(bank.clips, 2, CPU, from_memory(bank.features_VFC, bank.clips.frames_NT))
    (mine, _), (theirs, _) = fitted(bank, videos), fitted(streamed, videos)
    for name, tensor in mine.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name])


def test_a_penalty_that_cannot_be_chosen_is_the_usual_one(cache, bank, monkeypatch):
    def refuse(videos, turn):
        raise TrainingError("a single group")

    monkeypatch.setattr(train.linear, "split_off", refuse)
    assert fitted(bank, cache.dataset.half(1, "train"))[1] == 0.1


def test_where_features_say_nothing_the_penalty_is_the_strongest(tmp_path):
    def noise(video, level, frames, generator):
        return generator.normal(size=(2, frames, {"low": 128, "mid": 256, "high": 512}[level]))

    cache = trainable_cache(tmp_path, grouped_dataset(classes=4, groups=6), features=noise)
    videos = cache.dataset.half(1, "train")
    assert fitted(load_bank(cache, "low", videos, ClipRule(), CPU), videos)[1] == STRENGTHS[0]
