"""Runs chosen by their name, whatever they were trained with: reported, bundled, and made again by what is said."""

import html
import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cache.common.workspace import Workspace
from fuse.bundle import read_bundle
from fuse.trained import load_heads
from mrrn.cli import main
from tests.helpers.train import grouped_dataset, trainable_cache

SMALL = ("--recipe", "small", "--epochs", "1", "--hidden", "4")
BALANCED = "mean-seed1-h4-e1-balance-loss"
DECAY = "max-seed0-h4-e1-decay0.5"


def mrrn(workspace: Workspace, command: str, *arguments: str) -> Result:
    return CliRunner().invoke(main, [command, "--work", str(workspace.root), "--dataset", "tiny", *arguments])


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Runs by a setting that `mrrn train` has an option for, with held-out ones beside them, and by one it has not."""
    workspace = Workspace(tmp_path_factory.mktemp("work"))
    trainable_cache(workspace.root, grouped_dataset(videos_per_group=4))
    balanced = ("--seed", "1", *SMALL, "--balance", "loss")
    result = mrrn(workspace, "train", *balanced)
    assert f"--run {BALANCED} " in result.output, result.output
    assert mrrn(workspace, "train", *balanced, "--holdout").exit_code == 0
    grid = "--grid decay=0.5 --grid pool=max --grid hidden=4 --grid epochs=1 --seeds 1 --jobs 1"
    result = mrrn(workspace, "sweep", *grid.split())
    assert result.exit_code == 0, result.output
    assert f"`mrrn fuse --run`: {DECAY}, mean-seed0-linear" in result.output
    return workspace


@pytest.fixture
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    for figure in ("draw_confusion", "draw_per_class", "draw_samples"):  # the dear part, and not looked at here
        monkeypatch.setattr(f"fuse.report.build.{figure}", lambda *_: {})


@pytest.mark.parametrize(("name", "said"), [(BALANCED, "h4-e1-balance-loss"), (DECAY, "h4-e1-decay0.5")])
@pytest.mark.usefixtures("_no_figures")
def test_a_named_run_is_reported_and_its_commands_make_it_again(workspace: Workspace, name: str, said: str) -> None:
    result = mrrn(workspace, "fuse", "--run", name)
    assert result.exit_code == 0, result.output
    assert f"next: mrrn predict --dataset tiny --run {name} " in result.output
    folder = workspace.report("tiny", 1)
    summary = json.loads((folder / "results.json").read_text())
    assert (summary["pool"], summary["runs"]["high"]["variant"]) == (name[: name.index("-")], name.split("-", 2)[2])
    assert any(f"recipe: small with {said} (" in note for note in summary["notes"])
    assert summary["linear"]
    assert (summary["searched"] is not None) == (name == BALANCED)  # by the held-out runs of the same settings
    (commands,) = re.findall(r"<pre>(mrrn .*?)</pre>", (folder / "report.html").read_text(), re.DOTALL)
    _, *train, fuse = (shlex.split(line) for line in html.unescape(commands).splitlines())
    if name == DECAY:  # where it says how to train those that calibrate it
        assert shlex.join(train[0]) + " --holdout --work" in result.output
    assert fuse[-2:] == ["--run", name]
    assert len(train) == 1 + (name == BALANCED)
    before = sorted(workspace.runs("tiny", 1).iterdir())
    for _, command, *options in train:
        again = mrrn(workspace, command, *options[2:])
        assert again.exit_code == 0
        assert again.output.count("done already") == (3 if command == "train" else 1)
    assert sorted(workspace.runs("tiny", 1).iterdir()) == before


def test_a_named_run_is_bundled(workspace: Workspace, tmp_path: Path) -> None:
    result = mrrn(workspace, "bundle", "--run", BALANCED, "--out", str(tmp_path / "bundle"))
    assert result.exit_code == 0, result.output
    assert f"run {BALANCED}" in (tmp_path / "bundle" / "README.md").read_text()
    folders, _, calibration, _ = read_bundle(tmp_path / "bundle")
    assert load_heads(folders).classes == ("Class0", "Class1", "Class2")
    assert calibration is not None
    assert calibration.videos == 12


def test_a_misspelt_name_is_answered_with_the_nearest(workspace: Workspace) -> None:
    for command in (["fuse"], ["bundle"], ["export", "--out", "x.onnx"]):
        result = mrrn(workspace, *command, "--run", BALANCED.replace("loss", "los"))
        assert result.exit_code == 1
        assert f"did you mean {BALANCED}?" in result.output
        assert f"there are {DECAY}, mean-seed0-linear" in result.output
        assert "high-" not in result.output.split("there are")[1]  # one level alone cannot be fused


def test_the_name_stands_for_the_options_that_choose_runs(workspace: Workspace) -> None:
    result = mrrn(workspace, "fuse", "--run", BALANCED, "--seed", "0", "--clips", "keep=even")
    assert result.exit_code == 2
    assert "leave out --seed, --clips" in result.output
