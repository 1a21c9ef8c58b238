"""Views and transform: against torchvision's own, and what a view depends on."""

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import v2

from extract.network.preprocess import MEAN, STD, Normalise, crop_of, crop_views, parse_views, resize

SIZES = [(240, 320), (320, 240), (256, 256), (256, 340), (480, 854), (100, 77), (241, 319), (1080, 1920), (2, 3)]


def frames(height: int, width: int, count: int = 3) -> torch.Tensor:
    random = np.random.default_rng(height * 10_000 + width)
    smooth = np.linspace(0, 255, width)[None, None, :, None] + random.normal(0, 40, (count, height, width, 3))
    return torch.from_numpy(smooth.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("size", SIZES)
def test_the_center_view_equals_torchvision_to_the_bit(size):
    to_float, scaled = v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)
    theirs = v2.Compose([v2.Resize(256, antialias=True), v2.CenterCrop(224), to_float, scaled])
    block = frames(*size)
    rows = crop_views(resize(block), [crop_of("v", "center", 0)])[:, 0]
    ours = Normalise("cpu", torch.float32)(rows)
    assert torch.equal(ours, torch.stack([theirs(frame) for frame in block.permute(0, 3, 1, 2)]))
    assert ours.is_contiguous(memory_format=torch.channels_last)


def levels_apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference of two normalised images, in levels of 255."""
    return float((ours - theirs).abs().mul(torch.tensor(STD)[:, None, None] * 255).max())


@pytest.mark.parametrize("size", SIZES)
def test_the_preset_of_the_published_weights_and_pil_are_within_one_level(size):
    from torchvision.models import ResNet34_Weights

    block = frames(*size)
    preset = ResNet34_Weights.IMAGENET1K_V1.transforms()
    ours = Normalise("cpu", torch.float32)(crop_views(resize(block), [crop_of("v", "center", 0)])[:, 0])
    assert levels_apart(ours, preset(block.permute(0, 3, 1, 2))) < 1.001
    images = [PIL.Image.fromarray(frame.numpy()) for frame in block]
    assert levels_apart(ours, torch.stack([preset(image) for image in images])) < 1.001


def test_a_frame_does_not_depend_on_its_neighbours():
    block = frames(240, 320, 9)
    whole = resize(block)
    parts = torch.cat([resize(block[:1]), resize(block[1:6]), resize(block[6:])])
    assert torch.equal(whole, parts)


def test_flips_mirror_and_one_resize_serves_all_views():
    crops = [crop_of("a/b", view, 0) for view in parse_views("center,center_flip,random:2")]
    rows = crop_views(resize(frames(240, 320)), crops)
    assert rows.shape == (3, 4, 224, 224, 3)
    assert torch.equal(rows[:, 1], rows[:, 0].flip(2))


def test_view_lists_are_spelled_out():
    assert parse_views("center") == ("center",)
    assert parse_views("center, center_flip,random:2") == ("center", "center_flip", "random0", "random1")
    assert parse_views("center,random") == ("center", "random0")


OTHER_VIEWS = ["", "random:2", "center,center", "center,left", "center,random:1,random:2", "center,random:99"]


@pytest.mark.parametrize("text", OTHER_VIEWS)
def test_other_view_lists_are_refused(text):
    with pytest.raises(ValueError, match="view"):
        parse_views(text)


def test_random_views_depend_on_video_view_and_seed_alone():
    crop = crop_of("a/b", "random0", 0)
    assert crop == crop_of("a/b", "random0", 0)
    assert len({crop, crop_of("a/c", "random0", 0), crop_of("a/b", "random1", 0), crop_of("a/b", "random0", 1)}) == 4


def test_random_views_cover_the_frame_and_flip_half_the_time():
    crops = [crop_of(f"video{index}", "random0", 0) for index in range(2000)]
    offsets = {crop.offsets(256, 341, 224) for crop in crops}
    assert {top for top, _ in offsets} == set(range(33))
    assert {left for _, left in offsets} == set(range(118))
    assert 0.45 < sum(crop.flip for crop in crops) / 2000 < 0.55


@given(st.integers(256, 4000), st.integers(256, 4000), st.text(max_size=20), st.sampled_from(["center", "random0"]))
def test_a_crop_never_leaves_the_frame(height, width, video, view):
    top, left = crop_of(video.encode("utf8", "ignore").decode(), view, 0).offsets(height, width, 224)
    assert 0 <= top <= height - 224
    assert 0 <= left <= width - 224
