"""Bundles on disk: the older one or the new one, never half of one, and nothing of others is replaced."""

import errno
import itertools
import os
from pathlib import Path
from typing import Any

import pytest

from cache.clips import ClipRule
from cache.common import files
from cache.common.errors import ScoreError
from cache.dataset import Dataset
from cache.fingerprint import LEVELS, Level
from fuse.bundle import model_card, read_bundle, write_bundle
from fuse.results import Results
from fuse.summary import summarise
from tests.helpers.scores import MADE, hand_worked_results, results_of_a_subset

RESULTS = hand_worked_results()


def runs(folder: Path, content: bytes) -> dict[Level, Path]:
    """Folders of three runs whose checkpoints hold `content`."""
    for level in LEVELS:
        (folder / level).mkdir(parents=True)
        (folder / level / "config.json").write_bytes(b"{}")
        (folder / level / "checkpoint.safetensors").write_bytes(content)
    return {level: folder / level for level in LEVELS}


@pytest.fixture
def older(tmp_path: Path) -> dict[Level, Path]:
    return runs(tmp_path / "older", b"older")


@pytest.fixture
def newer(tmp_path: Path) -> dict[Level, Path]:
    return runs(tmp_path / "newer", b"newer")


def content(out: Path) -> bytes:
    read_bundle(out)
    found = {(out / level / "checkpoint.safetensors").read_bytes() for level in LEVELS}
    assert len(found) == 1
    return found.pop()


@pytest.mark.parametrize(("call", "exchanging"), [("fsync", True), ("mkdir", True), ("rename", False)])
def test_wherever_writing_is_refused_the_older_or_the_new_one_is_there(
    tmp_path: Path,
    older: dict[Level, Path],
    newer: dict[Level, Path],
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    exchanging: bool,
) -> None:
    if not exchanging:

        def cannot(*_: Any) -> None:
            raise OSError(errno.EINVAL, "this file system cannot")

        monkeypatch.setattr(files, "_exchange", cannot)
    out, real, refused = tmp_path / "place" / "bundle", getattr(os, call), 0
    for number in itertools.count():
        write_bundle(out, older, RESULTS, ClipRule())
        count = itertools.count()

        def refusing(*arguments: Any, count: Any = count, number: int = number, **more: Any) -> Any:
            if next(count) == number:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments, **more)

        with monkeypatch.context() as patched:
            patched.setattr(os, call, refusing)
            try:
                write_bundle(out, newer, RESULTS, ClipRule())
            except OSError:
                refused += 1
        assert content(out) in (b"older", b"newer")
        write_bundle(out, newer, RESULTS, ClipRule())
        assert content(out) == b"newer"
        assert [path.name for path in out.parent.iterdir()] == ["bundle"]
        if next(count) <= number:
            break
    assert refused


def card(results: Results) -> str:
    return model_card(results, summarise(results, [], MADE), ClipRule())


def test_the_card_of_own_data_has_no_figures_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "| paper % |" in card(results_of_a_subset())
    monkeypatch.setattr(Dataset, "noun", "samples")
    own = card(RESULTS)
    assert "paper %" not in own
    assert "2 test samples of split 1" in own
    assert "Its probabilities are not calibrated, because no runs held 10 training samples or more out." in own


@pytest.mark.parametrize("name", ["notes.txt", "low/head.onnx", ".git/config"])
def test_files_of_others_are_never_replaced(tmp_path: Path, older: dict[Level, Path], name: str) -> None:
    write_bundle(tmp_path / "out", older, RESULTS, ClipRule())
    (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(ScoreError, match=f"not only a bundle: {name}"):
        write_bundle(tmp_path / "out", older, RESULTS, ClipRule())
    assert (tmp_path / "out" / name).read_text() == "mine"


def test_a_folder_that_holds_only_a_readme_is_somebodys(tmp_path: Path, older: dict[Level, Path]) -> None:
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "file").touch()
    for out in (tmp_path, tmp_path / "file"):
        with pytest.raises(ScoreError, match="--out"):
            write_bundle(out, older, RESULTS, ClipRule())


def test_what_an_earlier_version_left_half_written_is_replaced(tmp_path: Path, older: dict[Level, Path]) -> None:
    write_bundle(tmp_path / "out", older, RESULTS, ClipRule())
    (tmp_path / "out" / "bundle.json").unlink()
    (tmp_path / "out" / "high" / ".tmp-1-config.json").touch()
    write_bundle(tmp_path / "out", older, RESULTS, ClipRule())
    assert content(tmp_path / "out") == b"older"


def test_a_link_to_a_folder_stays_one(tmp_path: Path, older: dict[Level, Path]) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "out")
    for _ in range(2):
        write_bundle(tmp_path / "link", older, RESULTS, ClipRule())
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "elsewhere" / "out") == b"older"
