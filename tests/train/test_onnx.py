"""`python -m train export`: the ONNX file computes in onnxruntime what the head computes, for any number of clips."""

import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from tests.train.test_checkpoint import CONFIG, head_tensors, write_run
from train.checkpoint import Checkpoint, load_head, new_head, save_checkpoint
from train.cli import main
from train.config import CHECKPOINT_FILE, RunConfig, write_config

onnxruntime = pytest.importorskip("onnxruntime")

SHORT = replace(CONFIG, recipe=replace(CONFIG.recipe, clips=replace(CONFIG.recipe.clips, length=5)))


def finished_run(folder: Path, config: RunConfig) -> Path:
    torch.manual_seed(0)
    head = new_head(config)
    if head.standardised:
        head.standardise_by(torch.randn(128).double(), torch.rand(128).double())
    tensors = {f"head.{name}": each for name, each in head.state_dict().items()}
    write_config(folder, config, "finished")
    save_checkpoint(folder / CHECKPOINT_FILE, Checkpoint(tensors=tensors, config=config, position=None))
    return folder


def export(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


@pytest.mark.parametrize(
    ("cell", "pool"),
    [
        ("sru", "mean"),
        pytest.param("sru", "max", marks=pytest.mark.slow),
        pytest.param("sru", "attention", marks=pytest.mark.slow),
        pytest.param("lstm", "mean", marks=pytest.mark.slow),
        pytest.param("gru", "max", marks=pytest.mark.slow),
        pytest.param("mean", "mean", marks=pytest.mark.slow),
        pytest.param("linear", "mean", marks=pytest.mark.slow),
    ],
)
def test_exported_head_gives_the_same_logits_in_onnxruntime(cell, pool, tmp_path):
    config = replace(SHORT, pool=pool, recipe=replace(SHORT.recipe, cell=cell, inputs="standardised"))
    run = finished_run(tmp_path, config)
    # torch's exporter fails for nn.LSTM and nn.GRU where warnings are errors, as here.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = export(run)
    assert done.exit_code == 0, done.output
    assert str(run / "head.onnx") in done.output
    head, _ = load_head(run)
    session = onnxruntime.InferenceSession(run / "head.onnx", providers=["CPUExecutionProvider"])
    for clips in (1, 2, 7):
        x_TBC = torch.randn(5, clips, 128)
        (logits,) = session.run(["logits"], {"features": x_TBC.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), head(x_TBC).detach(), rtol=1e-5, atol=1e-5)
    told = session.get_modelmeta().custom_metadata_map
    assert (told["level"], told["dataset"], told["weights"]) == ("low", "tiny", "random:0")
    assert json.loads(told["classes"]) == ["a", "b"]
    assert json.loads(told["clips"])["length"] == 5


def test_an_unfinished_run_is_not_exported(tmp_path):
    write_run(tmp_path, head_tensors())
    write_config(tmp_path, CONFIG, "training")
    (tmp_path / CHECKPOINT_FILE).unlink()
    result = export(tmp_path, "--to", tmp_path / "x.onnx")
    assert result.exit_code == 1
    assert "make train" in result.output
    assert not (tmp_path / "x.onnx").exists()


def test_without_the_packages_that_write_onnx_it_says_which(tmp_path, monkeypatch):
    run = finished_run(tmp_path, SHORT)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    result = export(run)
    assert result.exit_code == 1
    assert "pip install onnx onnxscript" in result.output
    assert not (run / "head.onnx").exists()
