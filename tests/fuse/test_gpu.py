"""All three stages on a GPU, and a prediction of the heads made there on a CPU."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cache.aggregate import clips_to_videos, fuse_levels
from cache.common.workspace import Workspace
from cache.fingerprint import LEVELS
from cache.scores import read_scores
from cache.store import FeatureCache
from extract.fingerprint import fingerprint
from extract.network.weights import load_weights
from extract.pipeline import extract_features
from extract.settings import ExtractSettings
from extract.shards import shard_data
from fuse.cli import main
from tests.helpers.devices import on_both
from tests.helpers.train import grouped_dataset
from tests.helpers.video import encode
from train.distributed import choose_device
from train.recipes import RECIPES
from train.run import run
from train.split import open_split


@on_both
@pytest.mark.slow
def test_heads_made_there_predict_on_a_cpu_as_they_were_scored(device, tmp_path):
    dataset = grouped_dataset(classes=2, groups=3, videos_per_group=1)
    paths = [(video.id, tmp_path / "videos" / video.path) for video in dataset.videos]
    for index, (_, path) in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        encode(path, frames=10 + index)
    settings = ExtractSettings(weights="random:3", backbone="resnet18", batch_frames=8, device=device)
    weights = load_weights(settings.weights, settings.backbone)
    made_with = fingerprint(settings, weights_text=weights.text, weights_sha256=weights.sha256)
    workspace = Workspace(tmp_path / "work")
    told = {"data": str(tmp_path / "videos"), "weights": settings.weights}
    with FeatureCache.create(
        workspace.cache(dataset.name), dataset=dataset, fingerprint=made_with, settings=told
    ) as cache:
        claim = cache.ledger.claim("test", 100, 600.0)
        assert claim is not None
        found = sorted(extract_features(paths, settings), key=lambda video: video.outcome.video_id)
        cache.commit(claim, shard_data(found), [video.outcome for video in found], made_with.environment)
    workspace.remember_dataset(dataset.name)

    split = open_split(workspace, dataset.name, 1)
    recipe = replace(RECIPES["small"], name="tiny", hidden=8, layers=1, epochs=2, min_steps=0)
    scored = {}
    for level in LEVELS:
        config = split.config(level=level, pool="mean", seed=0, recipe=recipe, usual=recipe, holdout=False)
        run(split, config, workspace, choose_device(device))
        table = read_scores(config.folder(workspace) / "scores.npz")
        ids, scored[level] = clips_to_videos(table.video_ids, table.softmax)
    expected = dict(zip(ids, fuse_levels(scored), strict=True))

    files = [str(tmp_path / "videos" / f"{video}.avi") for video in ids]
    command = ["predict", "--work", str(workspace.root), "--device", "cpu", "--json", *files]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    for answer in json.loads(result.stdout)["predictions"]:
        video = str(Path(answer["video"]).relative_to(tmp_path / "videos").with_suffix(""))
        np.testing.assert_allclose(answer["fused"], expected[video], atol=1e-3)
