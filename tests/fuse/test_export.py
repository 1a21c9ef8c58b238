"""`python -m fuse export`: one ONNX file computes in onnxruntime what prediction computes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.aggregate import PAPER_WEIGHTS, clips_to_videos, fuse_levels
from cache.clips import ClipRule
from cache.fingerprint import LEVELS, widths_of
from extract.fingerprint import fingerprint
from extract.network.backbones import build_forward, columns_of
from extract.network.weights import load_weights
from extract.settings import ExtractSettings
from fuse.calibration import SCALED, Calibration, scaled
from fuse.export import to_onnx
from fuse.trained import Heads
from train.heads import Head
from train.recipes import RECIPES
from train.score import score_clips

onnxruntime = pytest.importorskip("onnxruntime")

CLASSES = ("jump", "<run>", "Läufer")


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["sru", "mean"])
@pytest.mark.parametrize("backbone", ["resnet18", "timm:test_efficientnet@64", "timm:test_vit@64"])
def test_crops_to_probabilities_as_in_prediction(backbone: str, cell: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = ExtractSettings(weights="random:0", backbone=backbone, batch_frames=8)
    weights = load_weights(settings.weights, backbone)
    made_with = fingerprint(settings, weights_text=weights.text, weights_sha256=weights.sha256)
    recipe = replace(RECIPES["small"], cell=cell, hidden=16, layers=2, inputs="standardised")
    heads = {}
    for level, width in widths_of(made_with.identity).items():
        heads[level] = Head(width, len(CLASSES), recipe).eval()
        heads[level].standardise_by(torch.full((width,), 0.4).double(), torch.full((width,), 0.1).double())
    calibration = Calibration(temperatures=dict.fromkeys(SCALED, 0.7), threshold=0.1, heldout=())  # type: ignore[arg-type]
    bundle = Heads(
        heads=heads,
        classes=CLASSES,
        clips=ClipRule(length=4),
        identity=made_with.identity,
        environment=made_with.environment,
        fusion_weights=PAPER_WEIGHTS,
        calibration=calibration,
    )
    file = tmp_path / "whole.onnx"
    file.write_bytes(to_onnx(bundle, settings, weights))
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == list(CLASSES)
    assert json.loads(metadata["clips"])["length"] == 4
    assert json.loads(metadata["fingerprint"])["identity"]["weights_sha256"] == weights.sha256
    assert metadata["preprocess"] == str(weights.preprocess)

    forward = build_forward(weights, device="cpu", precision="fp32", levels=LEVELS)
    for clips in (1, 3):
        rows = torch.randint(0, 256, (clips * 4, *[weights.preprocess.crop] * 2, 3), dtype=torch.uint8)
        features = forward(rows).float().numpy()
        of_clips = {
            level: score_clips(heads[level], features[:, columns], np.arange(clips * 4).reshape(clips, 4))
            for level, columns in columns_of(weights, LEVELS).items()
        }
        levels = {level: clips_to_videos(["v"] * clips, each)[1] for level, each in of_clips.items()}
        expected = scaled(fuse_levels(levels)[0], 0.7)
        video_K, clips_NK = session.run(None, {"crops": rows.unflatten(0, (clips, 4)).numpy()})
        assert clips_NK.shape == (clips, len(CLASSES))
        assert video_K.argmax() == expected.argmax()
        np.testing.assert_allclose(video_K, expected, atol=1e-4)
        np.testing.assert_allclose(clips_NK, fuse_levels(of_clips), atol=1e-4)
