"""`mrrn compare`: the same test videos, paired, in words and as a page; what cannot be compared is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from cache.common.workspace import Workspace
from cache.dataset import Dataset
from cache.fingerprint import LEVELS
from cache.scores import write_scores
from cache.store import FeatureCache
from fuse.cli import compare
from fuse.compare import side_by_side
from tests.helpers.scores import make_table
from tests.helpers.train import grouped_dataset, trainable_cache

SURE = np.full((3, 3), 0.1) + np.eye(3) * 0.7


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A cache of 24 test videos in three classes, and two runs: `mean-seed0` takes half of the first class for the
    second, `mean-seed0-better` two of the third for the first."""
    workspace = Workspace(tmp_path_factory.mktemp("work"))
    cache = trainable_cache(workspace.root, grouped_dataset(groups=5, test_groups=4))
    write(workspace, cache, "mean-seed0", wrong={0: (4, 1)})
    write(workspace, cache, "mean-seed0-better", wrong={2: (2, 0)}, recipe="better")
    return workspace


def write(
    workspace: Workspace, cache: FeatureCache, name: str, *, wrong: dict[int, tuple[int, int]], **run: Any
) -> None:
    """Scores of each level; of each class in `wrong` as many of its first videos are taken for another class."""
    dataset: Dataset = cache.dataset
    clips, labels, seen = {}, {}, dict.fromkeys(wrong, 0)
    for video in dataset.half(1, "test"):
        label = labels[video.id] = video.label or 0
        count, other = wrong.get(label, (0, label))
        seen[label] = seen.get(label, 0) + 1
        clips[video.id] = [SURE[other if seen[label] <= count else label].tolist()] * 2
    for level in LEVELS:
        about = {"dataset": dataset.name, "fingerprint": cache.fingerprint.to_json(), **run}
        table = make_table(level, clips, labels, classes=dataset.classes, **about)
        write_scores(workspace.runs(dataset.name, 1) / f"{level}-{name}" / "scores.npz", table)


def run(workspace: Workspace, *names: str) -> Result:
    return CliRunner().invoke(compare, ["--work", str(workspace.root), "--dataset", "tiny", *names])


def test_runs_are_compared_video_by_video_and_class_by_class(workspace: Workspace) -> None:
    found = side_by_side(["mean-seed0", "mean-seed0-better"], workspace, "tiny", 1)
    first, second = found.runs
    assert (first.accuracy, second.accuracy) == (20 / 24, 22 / 24)
    test = found.against_first(second).test
    assert (test.only_first, test.only_second) == (4, 2)
    classes = {each.name: (each.videos, each.first, each.second) for each in found.by_class(second)}
    assert list(classes.items()) == [("Class0", (8, 4, 8)), ("Class2", (8, 8, 6)), ("Class1", (8, 8, 8))]
    gained = found.only_right(second, first)
    assert [(found.labels[place], said) for place, said in gained] == [(0, 1)] * 4
    assert found.settings_that_differ() == ["recipe: mean-seed0 'paper', mean-seed0-better 'better'"]


def test_it_says_so_and_writes_a_page(workspace: Workspace) -> None:
    path = f"{workspace.root}/runs/tiny/split1/high-mean-seed0"  # a level alone, by its path
    result = run(workspace, "mean-seed0", "mean-seed0-better", path)
    assert result.exit_code == 0, result.output
    assert "mean-seed0: 83.3 %" in result.output
    assert "mean-seed0-better against mean-seed0: +8.3 points, which chance may explain" in result.output
    assert "the very same ones right" in result.output
    page = (workspace.report("tiny", 1) / "compare.html").read_text()
    assert "tiny, split 1: 3 runs side by side" in page
    assert "Without frames:" in page or "There are no frames" in page
    assert "script-src" in page
    assert "<script" not in page


def test_what_cannot_be_compared_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    for names in ((), ("mean-seed0",), ("mean-seed0", "mean-seed0")):
        result = run(workspace, *names)
        assert (result.exit_code, "give two or more different runs" in str(result.exception)) == (1, True)
    for name in ("nothing", "/", ".."):
        result = run(workspace, "mean-seed0", name)
        assert (result.exit_code, f"no run is called {name!r}" in str(result.exception)) == (1, True)
    other = Workspace(tmp_path)
    cache = trainable_cache(tmp_path, grouped_dataset(groups=6, test_groups=5))
    write(other, cache, "mean-seed0", wrong={})
    message = str(run(workspace, "mean-seed0", f"{other.runs('tiny', 1)}/mean-seed0").exception)
    assert "are not of the same test videos" in message
    assert "scored, but not test videos of this split: Class0/v_Class0_g05_c01" in message
