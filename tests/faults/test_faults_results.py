"""What training and fusion write, killed and refused at each of their system calls: the same command continues."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import fuse.cli
import train.cli
import train.run
from cache.common.files import read_json
from cache.common.workspace import Workspace
from cache.fingerprint import LEVELS
from cache.scores import read_scores
from extract.settings import ExtractSettings, fingerprint
from fuse.bundle import read_bundle, write_bundle
from fuse.predict import load_heads
from tests.helpers.breaking import break_each_call
from tests.helpers.train import grouped_dataset, trainable_cache
from train.config import read_config
from train.recipes import RECIPES
from train.split import open_split

MODULES = ("h5py", "cache.shards.hdf5", "torch", "torch.utils.tensorboard", "train.cli", "fuse.cli", "fuse.bundle")
MODULES += ("fuse.report.samples", "fuse.report.sweeps", "fuse.report.timing", "fuse.predict", "tests.faults.hasty")
SMALL = ("--hidden", "4", "--layers", "1", "--epochs", "2", "--batch", "8")


def run(stage: str, *arguments: object) -> None:
    result = CliRunner().invoke({"train": train.cli, "fuse": fuse.cli}[stage].main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a cache, a run of each level, a table of one of them, a report, and a bundle that is older."""
    work = tmp_path_factory.mktemp("results")
    made_with = fingerprint(
        ExtractSettings(views=("center", "center_flip")), weights_text="random:0", weights_sha256="0" * 64
    )
    trainable_cache(work, grouped_dataset(classes=2, groups=3, videos_per_group=1), fingerprint=made_with).close()
    Workspace(work).remember_dataset("tiny")
    split, recipe = (
        open_split(Workspace(work), "tiny", 1),
        replace(RECIPES["small"], name="tiny", hidden=4, layers=1, epochs=1, min_steps=0),
    )
    for level in LEVELS:
        config = split.config(level=level, pool="mean", seed=0, recipe=recipe, usual=recipe, holdout=False)
        train.run.run(split, config, Workspace(work), torch.device("cpu"))
    run("train", "--work", work, "--level", "low", *SMALL)
    run("train", *(str(each).replace("WORK", str(work)) for each in SWEEP))
    run("fuse", "--work", work)
    summary = read_json(work / "report" / "tiny" / "split1" / "results.json")
    folders = {level: Workspace(work).run("tiny", 1, level, "mean", 0) for level in LEVELS}
    write_bundle(work / "bundle", folders, {**summary, "notes": ["the older one"]})
    return work


@dataclass(frozen=True)
class Broken:
    """A command that is broken, and what is looked at."""

    stage: str
    arguments: tuple[object, ...]
    removed: str
    """What of the finished workspace the command makes anew; empty if it replaces what is there."""
    finished: Callable[[Path, Path], None]
    """Takes the workspace, and the finished one."""
    whole: Callable[[Path], None] = lambda _: None
    """Looks at the workspace after the broken command."""


def whole_bundle(work: Path) -> None:
    """The older one or the new one."""
    read_bundle(work / "bundle")


def new_bundle(work: Path, done: Path) -> None:
    heads = load_heads(*read_bundle(work / "bundle"))
    assert heads.classes == ("Class0", "Class1")
    assert read_json(work / "bundle" / "bundle.json")["notes"] != ["the older one"]


def same_run(work: Path, done: Path) -> None:
    """Scores and losses to the same bits."""
    name = "runs/tiny/split1/low-mean-seed0-h4-l1-e2-b8"
    found, expected = (read_scores(each / name / "scores.npz") for each in (work, done))
    assert np.array_equal(found.softmax, expected.softmax)
    rows = [[json.loads(row)["loss"] for row in (each / name / "metrics.jsonl").open()] for each in (work, done)]
    assert rows[0] == rows[1]
    config = read_config(work / name)
    assert config is not None
    assert config[1] == "finished"
    load_heads(dict.fromkeys(["low"], work / name))


def same_report(work: Path, done: Path) -> None:
    found, expected = (read_json(each / "report" / "tiny" / "split1" / "results.json") for each in (work, done))
    assert found["accuracy"] == expected["accuracy"]
    assert "</html>" in (work / "report" / "tiny" / "split1" / "report.html").read_text()


def same_table(work: Path, done: Path) -> None:
    found, expected = (read_json(each / "sweeps" / "tiny" / "grid" / "results.json") for each in (work, done))
    assert found == expected


RUN = "runs/tiny/split1/low-mean-seed0-h4-l1-e2-b8"
SWEEP = (
    "sweep",
    "--work",
    "WORK",
    "--grid",
    "level=low",
    "--grid",
    "epochs=1",
    "--grid",
    "hidden=4",
    "--seeds",
    "1",
    "--jobs",
    "1",
)
COMMANDS = {
    "train": Broken("train", ("--work", "WORK", "--level", "low", *SMALL), RUN, same_run),
    "sweep": Broken("train", SWEEP, "sweeps", same_table),
    "fuse": Broken("fuse", ("--work", "WORK"), "", same_report),
    "bundle": Broken("fuse", ("bundle", "--work", "WORK", "--out", "WORK/bundle"), "", new_bundle, whole_bundle),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.slow
@pytest.mark.parametrize("every", [29, 1], ids=["some", "each"])
def test_the_same_command_continues(tmp_path: Path, done: Path, command: str, every: int) -> None:
    broken = COMMANDS[command]

    def prepare(place: Path) -> Sequence[object]:
        shutil.copytree(done, place / "work")
        if broken.removed:
            shutil.rmtree(place / "work" / broken.removed)
        return [str(each).replace("WORK", str(place / "work")) for each in broken.arguments]

    def finished(place: Path) -> None:
        broken.finished(place / "work", done)
        assert [path for path in place.rglob(".tmp-*") if path.is_file()] == []

    fired = break_each_call(
        tmp_path,
        broken.stage,
        prepare,
        finished,
        broken=lambda place: broken.whole(place / "work"),
        every=every,
        modules=MODULES,
    )
    print(f"{command}: broken {fired} times")
