"""`python -m fuse` on a small cache and made-up scores: what it prints, writes and refuses."""

import json
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

from cache.common.workspace import Workspace
from cache.dataset import Dataset
from cache.fingerprint import LEVELS
from cache.scores import write_scores
from cache.store import FeatureCache
from fuse.certainty import say_certainty
from fuse.choice import RunChoice
from fuse.cli import main
from fuse.results import MODELS, results_of
from tests.helpers.cache import make_fingerprint
from tests.helpers.scores import make_table
from tests.helpers.train import grouped_dataset, trainable_cache


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A finished cache of a tiny dataset and a run of each level on it."""
    workspace = Workspace(tmp_path / "work")
    write_runs(workspace, trainable_cache(workspace.root))
    return workspace


def write_runs(workspace: Workspace, cache: FeatureCache, *, without: tuple[str, ...] = ()) -> None:
    """Scores of each level in which every test video's own class has most of the probability."""
    dataset, fingerprint = cache.dataset, cache.fingerprint.to_json()
    labels = {video.id: video.label or 0 for video in dataset.half(1, "test") if video.id not in without}
    share = np.full((len(dataset.classes), len(dataset.classes)), 0.1) + np.eye(len(dataset.classes)) * 0.7
    for level in LEVELS:
        clips = {video: [share[label].tolist()] * 2 for video, label in labels.items()}
        table = make_table(level, clips, labels, classes=dataset.classes, dataset=dataset.name, fingerprint=fingerprint)
        write_scores(workspace.run(dataset.name, 1, level, "mean", 0) / "scores.npz", table)


def fuse(workspace: Workspace, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--work", str(workspace.root), *arguments])


def test_it_prints_the_table_and_writes_the_report(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    result = fuse(workspace, "--open")
    assert result.exit_code == 0, result.output
    folder = workspace.report("tiny", 1)
    assert "dataset tiny (extracted last" in result.output
    assert "! weights: random:0 (random, never trained)" in result.output
    assert f"report: {folder / 'report.html'}" in result.output
    assert "next: mrrn predict " in result.output
    assert opened == [(folder / "report.html").as_uri()]
    for name in ("low ", "mid ", "high ", "fused ", "mean ", "fused: MRRN (0.7 high + 0.2 mid + 0.1 low)"):
        assert f"\n{name}" in result.output
    rows = [line for line in result.output.splitlines() if line.split(" ")[0] in MODELS][:5]
    assert [row.split()[0] for row in rows] == [*MODELS]
    assert max(map(len, rows)) <= 80
    written = {path.name for path in folder.iterdir()}
    promised = "report.html results.json table3.csv table3.md per_class.csv per_class.md confusion.svg confusion.png"
    assert set(promised.split()) <= written
    assert json.loads((folder / "results.json").read_text())["accuracy"]["fused"] == 1.0
    assert not [name for name in written if name.startswith(".tmp")]
    assert json.loads((folder / "results.json").read_text())["doctor"] == {"test_copies_of_training": 0}
    for shard in (workspace.cache("tiny") / "shards").iterdir():
        shard.unlink()
    result = fuse(workspace)
    assert result.exit_code == 0, result.output
    assert json.loads((folder / "results.json").read_text())["doctor"] is None


@pytest.mark.parametrize(
    ("dataset", "offered"),
    [
        (grouped_dataset(groups=8, videos_per_group=4), True),
        (grouped_dataset(groups=4, videos_per_group=2), False),  # holds six out, which calibrate nothing
        (grouped_dataset(groups=2, videos_per_group=12), False),  # a single training group of each class
    ],
)
def test_held_out_runs_are_offered_only_where_they_would_calibrate(
    dataset: Dataset, offered: bool, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path)
    write_runs(workspace, trainable_cache(tmp_path, dataset))
    choice = RunChoice(workspace=workspace, dataset="tiny")
    said = CliRunner().invoke(click.command()(lambda: say_certainty(choice, results_of(choice)))).output
    assert "probabilities: not calibrated" in said
    assert ("CALIBRATE=1" in said) == ("--seed 0 --holdout\n" in said) == offered


def test_of_imported_features_no_prediction_is_offered_and_no_video_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for figure in ("draw_confusion", "draw_per_class"):
        monkeypatch.setattr(f"fuse.report.build.{figure}", lambda *_: {})
    workspace = Workspace(tmp_path)
    made = make_fingerprint(backbone="imported: a net", views=["center", "center_flip"])
    write_runs(workspace, trainable_cache(tmp_path, fingerprint=made))
    result = fuse(workspace)
    assert result.exit_code == 0, result.output
    assert "next:" not in result.output
    page = (workspace.report("tiny", 1) / "report.html").read_text()
    assert "There are no frames: the features were imported, and their list names no videos that are here." in page


def test_the_doctor_writes_a_page_and_a_list_and_counts_the_suspects(workspace: Workspace) -> None:
    result = CliRunner().invoke(main, ["doctor", "--work", str(workspace.root), "--dataset", "tiny"])
    assert result.exit_code == 0, result.output
    assert "tiny, split 1: 24 videos of 12 groups; findings: " in result.output
    assert "  100.0 % of 6 test videos (61.0 to 100.0)" in result.output
    assert "! The backbone was never trained (random:0)" in result.output
    written = {path.name for path in workspace.report("tiny", 1).iterdir()}
    assert written == {"doctor.html", "doctor.csv"}
    missing = CliRunner().invoke(main, ["doctor", "--work", str(workspace.root), "--dataset", "tiny", "--split", "2"])
    assert missing.exit_code == 1
    assert "has no split 2" in missing.output


@pytest.mark.slow
def test_the_same_scores_give_the_same_files(workspace: Workspace) -> None:
    folder = workspace.report("tiny", 1)
    fuse(workspace, "--dataset", "tiny")
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    fuse(workspace, "--dataset", "tiny")
    changed = {path.name for path in folder.iterdir() if path.read_bytes() != first[path.name]}
    assert changed <= {"report.html", "results.json"}  # these carry the date


def test_a_test_video_that_failed_counts_as_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cache.ledger import Outcome

    for figure in ("draw_confusion", "draw_per_class", "draw_samples"):  # the dear part, and not looked at here
        monkeypatch.setattr(f"fuse.report.build.{figure}", lambda *_: {})
    workspace = Workspace(tmp_path)
    cache = trainable_cache(tmp_path, leave_out=1)
    claim = cache.ledger.claim("test", 5, 60.0)
    assert claim is not None
    (video,) = claim.videos
    cache.commit(claim, None, [Outcome(video_id=video.id, status="failed", reason="truncated")], {})
    half = cache.dataset.half(1, "test")
    write_runs(workspace, cache, without=(video.id,))
    result = fuse(workspace)
    assert result.exit_code == 0, result.output
    summary = json.loads((workspace.report("tiny", 1) / "results.json").read_text())
    tested = video.id in {other.id for other in half}
    assert summary["missing_videos"] == ([{"id": video.id, "reason": "truncated"}] if tested else [])
    assert summary["accuracy"]["fused"] == (len(half) - tested) / len(half)


def test_an_unfinished_cache_is_refused(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    write_runs(workspace, trainable_cache(tmp_path, leave_out=2))
    result = fuse(workspace)
    assert result.exit_code == 1
    assert "error:" in result.output
    assert not workspace.report("tiny", 1).exists()


def test_runs_of_different_splits_are_refused(workspace: Workspace) -> None:
    path = workspace.run("tiny", 1, "low", "mean", 0) / "scores.npz"
    labels = {"Class0/v_Class0_g01_c01": 0}
    clips = {"Class0/v_Class0_g01_c01": [(0.5, 0.3, 0.2)]}
    write_scores(path, make_table("low", clips, labels, split=2, classes=("Class0", "Class1", "Class2")))
    result = fuse(workspace)
    assert result.exit_code == 1
    assert "split: low 2, mid 1, high 1" in result.output


def test_without_runs_it_says_how_to_train(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    trainable_cache(tmp_path)
    result = fuse(workspace, "--pool", "max", "--seed", "3")
    assert result.exit_code == 1
    options = f"--work {workspace.root} --dataset tiny --split 1 --pool max --seed 3 --level all"
    assert f"mrrn train {options}" in result.output


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04\x95pickle"])
def test_a_score_file_that_is_none_is_an_error_not_a_crash(workspace: Workspace, content: bytes) -> None:
    path = workspace.run("tiny", 1, "mid", "mean", 0) / "scores.npz"
    path.write_bytes(content)
    result = fuse(workspace)
    assert result.exit_code == 1
    assert f"{path} is not a score table" in result.output
