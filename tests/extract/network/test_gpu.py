"""Extraction on a GPU: real videos through the real pool, what the features may depend on, and the CPU's beside them.

Each function also runs on a CPU, so that the tests themselves are known to work.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.fingerprint import CHANNELS, LEVELS
from extract.network.engine import open_engine
from extract.network.preprocess import crop_of, crop_views, resize
from extract.network.weights import Weights, load_weights
from extract.pipeline import VideoFeatures, extract_features
from extract.settings import ExtractSettings
from tests.helpers.devices import on_both, on_both_slowly, on_gpu, where_installed
from tests.helpers.video import encode

SETTINGS = ExtractSettings(weights="random:0", backbone="resnet18", precision="fp32", batch_frames=8, jobs=2)
PRECISIONS = {"cpu": ("fp32",), "cuda": ("fp32", "fp16", "bf16")}
VIEWS = ("center", "center_flip", "random0")
SIZES = [(48, 64), (240, 320), (320, 240), (102, 78), (256, 256), (64, 200), (400, 226)]
FRAMES = [5, 3, 9, 1, 4, 7, 2]
"""31 frames in three views: batches of 8 rows, the last one with 5."""

RESIZED = [*SIZES, (241, 319), (480, 854), (1080, 1920), (3, 2)]


@pytest.fixture(scope="module")
def weights() -> Weights:
    return load_weights("random:0", "resnet18")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, Path]]:
    """Videos of many sizes in both containers."""
    folder = tmp_path_factory.mktemp("videos")
    return [
        (f"v{index}", encode(folder / f"v{index}.{'mp4' if index % 2 else 'avi'}", frames, size=size))
        for index, (size, frames) in enumerate(zip(SIZES, FRAMES, strict=True))
    ]


def extracted(videos: list[tuple[str, Path]], settings: ExtractSettings, weights: Weights) -> dict[str, VideoFeatures]:
    """What came of each video."""
    results = extract_features(videos, settings, engine=open_engine(settings, weights))
    return {result.outcome.video_id: result for result in results}


def assert_same(ours: dict[str, VideoFeatures], theirs: dict[str, VideoFeatures]) -> None:
    assert ours.keys() == theirs.keys()
    for name, result in ours.items():
        for level in result.features:
            assert np.array_equal(result.features[level], theirs[name].features[level]), (name, level)
        assert np.array_equal(result.pts_seconds, theirs[name].pts_seconds)


@on_both_slowly
def test_features_depend_on_the_video_alone(videos, weights, device):
    """Not on its neighbours, their order, the number of decoders, or on what a batch held before."""
    for precision in PRECISIONS[device]:
        settings = replace(SETTINGS, device=device, precision=precision, views=VIEWS)
        together = extracted(videos, settings, weights)
        for (name, _), frames in zip(videos, FRAMES, strict=True):
            shapes = {level: features.shape for level, features in together[name].features.items()}
            assert shapes == {level: (len(VIEWS), frames, CHANNELS[level]) for level in LEVELS}
        other = replace(settings, jobs=3)
        assert_same(extracted(list(reversed(videos)), other, weights), together)
        assert_same(extracted(videos[2:3], other, weights), {"v2": together["v2"]})


def blocks() -> list[np.ndarray]:
    """More blocks than there are page-locked buffers, of two sizes; each with both crops is a batch."""
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (4, 120, 160 + 40 * (i % 2), 3), dtype=np.uint8) for i in range(20)]


CROPS = [crop_of("v", "center", 0), crop_of("v", "random0", 0)]


@on_gpu
def test_a_blocks_memory_is_free_once_it_is_prepared(weights, device):
    """Also where batches are submitted as far ahead as the engine allows."""
    engine = open_engine(replace(SETTINGS, device=device), weights)
    results: list[list[np.ndarray]] = []
    for ahead in (0, engine.depth):
        fetched, under_way = [], 0
        for block in blocks():
            engine.fill(engine.prepare(block, CROPS).flatten(0, 1), 0)
            block[:] = 0
            engine.submit()
            under_way += 1
            while under_way > ahead:
                fetched.append(engine.fetch().copy())
                under_way -= 1
        results.append(fetched + [engine.fetch().copy() for _ in range(under_way)])
    assert all(map(np.array_equal, *results))


@on_gpu
def test_a_row_does_not_depend_on_its_place(weights, device):
    engine = open_engine(replace(SETTINGS, device=device, precision="fp16"), weights)
    rows = engine.prepare(blocks()[0], CROPS).flatten(0, 1)
    results = []
    for shift in (0, 3):
        engine.fill(rows.roll(shift, 0), 0)
        engine.submit()
        results.append(np.roll(engine.fetch(), -shift, axis=0))
    assert np.array_equal(*results)


@on_both_slowly
def test_an_engine_goes_on_with_other_videos_to_the_same_bits(videos, weights, device):
    settings = replace(SETTINGS, device=device)
    engine = open_engine(settings, weights)
    first, second = (list(extract_features(videos, settings, engine=engine)) for _ in range(2))
    assert_same(*({each.outcome.video_id: each for each in results} for results in (first, second)))


@on_both
@pytest.mark.slow
def test_features_agree_with_the_cpus(videos, weights, device):
    expected = extracted(videos, replace(SETTINGS, views=VIEWS), weights)
    for precision in PRECISIONS[device]:
        ours = extracted(videos, replace(SETTINGS, device=device, precision=precision, views=VIEWS), weights)
        for name, result in ours.items():
            for level, features in result.features.items():
                pair = [torch.from_numpy(each).float() for each in (features, expected[name].features[level])]
                assert torch.cosine_similarity(*pair, dim=-1).min() > 0.999, (precision, name, level)


@on_both
@pytest.mark.parametrize("size", RESIZED, ids=str)
def test_resized_frames_are_within_one_level_of_the_cpus(device, size):
    random = np.random.default_rng(size)
    smooth = np.linspace(0, 255, size[1])[None, None, :, None] + random.normal(0, 40, (3, *size, 3))
    frames = torch.from_numpy(smooth.clip(0, 255).astype(np.uint8))
    crops = [crop_of("v", view, 0) for view in VIEWS]
    ours, theirs = resize(frames.to(device)), resize(frames)
    assert ours.shape == theirs.shape
    assert (ours.cpu().int() - theirs.int()).abs().max() <= 1
    assert torch.equal(crop_views(ours, crops).cpu(), crop_views(ours.cpu(), crops))


@on_both
@pytest.mark.parametrize(
    "backbone", ["resnet34", "resnet18", *where_installed("timm", "timm:test_efficientnet", "timm:test_vit")]
)
def test_some_levels_are_those_of_all_levels(device, backbone):
    """Which levels are kept changes none of them, on each backbone."""
    found = {}
    trunk = load_weights("random:1", backbone)
    random = np.random.default_rng(0)
    frames = random.integers(0, 256, (4, 120, 160, 3), dtype=np.uint8)
    for levels in (LEVELS, ("low",), ("low", "high"), ("mid",)):
        settings = replace(SETTINGS, device=device, backbone=backbone, levels=levels, batch_frames=4)
        engine = open_engine(settings, trunk)
        engine.fill(engine.prepare(frames, [crop_of("v", "center", 0)]).flatten(0, 1), 0)
        engine.submit()
        features_BC = engine.fetch()
        found[levels] = {level: features_BC[:, span] for level, span in engine.columns.items()}
    for levels, some in found.items():
        for level, features in some.items():
            assert np.array_equal(features, found[LEVELS][level]), (levels, level)


@on_both
def test_features_beyond_float16_fail_the_video(videos, weights, device):
    huge = {name: value * 1e6 if name == "layer4.0.bn1.weight" else value for name, value in weights.tensors.items()}
    settings = replace(SETTINGS, device=device)
    result = extracted(videos[:1], settings, Weights(text="huge", backbone="resnet18", tensors=huge, sha256=""))["v0"]
    assert result.outcome.status == "failed"
    assert "level high, are not finite" in result.outcome.reason
