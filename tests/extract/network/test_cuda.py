"""The CUDA engine against the CPU's fp32, where there is a GPU."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from extract.network.engine import open_engine
from extract.network.preprocess import crop_of
from extract.network.weights import Weights, load_weights
from extract.settings import ExtractSettings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SETTINGS = ExtractSettings(weights="random:0", backbone="resnet18", precision="fp32", batch_frames=8)
CROPS = [crop_of("v", "center", 0), crop_of("v", "random0", 0)]


@pytest.fixture(scope="module")
def weights() -> Weights:
    return load_weights("random:0", "resnet18")


def blocks() -> list[np.ndarray]:
    """More blocks than there are pinned buffers, of two sizes."""
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (4, 120, 160 + 40 * (i % 2), 3), dtype=np.uint8) for i in range(20)]


def features(settings: ExtractSettings, weights: Weights) -> np.ndarray:
    """Features of all blocks, a block to a batch, submitted as far ahead as the engine allows."""
    engine, fetched, under_way = open_engine(settings, weights), [], 0
    for block in blocks():
        scratch = block.copy()
        engine.fill(engine.prepare(scratch, CROPS).flatten(0, 1), 0)
        scratch[:] = 0  # the host's memory is free once `prepare` has returned
        engine.submit()
        under_way += 1
        while under_way > engine.depth:
            fetched.append(engine.fetch().copy())
            under_way -= 1
    return np.concatenate([*fetched, *(engine.fetch().copy() for _ in range(under_way))])


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_features_agree_with_the_cpu_and_with_themselves(weights, precision):
    expected = torch.from_numpy(features(SETTINGS, weights)).float()
    on_gpu = replace(SETTINGS, device="cuda", precision=precision)
    ours = features(on_gpu, weights)
    assert np.array_equal(ours, features(on_gpu, weights))
    # The resized pixels differ by up to one level between the devices (extract/network/preprocess.py).
    assert torch.cosine_similarity(torch.from_numpy(ours).float(), expected).min() > 0.999


def test_a_row_does_not_depend_on_its_place(weights):
    engine = open_engine(replace(SETTINGS, device="cuda", precision="fp16"), weights)
    rows = engine.prepare(blocks()[0], CROPS).flatten(0, 1)
    results = []
    for shift in (0, 3):
        engine.fill(rows.roll(shift, 0), 0)
        engine.submit()
        results.append(np.roll(engine.fetch(), -shift, axis=0))
    assert np.array_equal(*results)
