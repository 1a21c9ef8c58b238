"""Names of folders below work/, and which dataset was extracted last."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cache.common.errors import DatasetError
from cache.common.workspace import Workspace


def test_where_things_lie(tmp_path: Path) -> None:
    work = Workspace(tmp_path)
    assert work.cache("ucf101") == tmp_path / "cache/ucf101"
    assert work.run("ucf101", 1, "mid", "mean", 7) == tmp_path / "runs/ucf101/split1/mid-mean-seed7"
    assert work.run("toy", 2, "low", "max", 0, "gru") == tmp_path / "runs/toy/split2/low-max-seed0-gru"
    assert work.report("ucf101", 3) == tmp_path / "report/ucf101/split3"


@pytest.mark.parametrize("name", ["..", "a/b", "/etc", ""])
def test_a_dataset_name_cannot_lead_out_of_the_workspace(tmp_path: Path, name: str) -> None:
    work = Workspace(tmp_path)
    for place in (work.cache, lambda name: work.runs(name, 1), lambda name: work.report(name, 1)):
        with pytest.raises(DatasetError):
            place(name)
    with pytest.raises(DatasetError):
        work.remember_dataset(name)


def test_the_last_dataset_is_remembered(tmp_path: Path) -> None:
    work = Workspace(tmp_path / "new")
    assert work.last_dataset() is None
    work.remember_dataset("ucf101")
    assert Workspace(tmp_path / "new").last_dataset() == "ucf101"
    work.remember_dataset("demo")
    assert work.last_dataset() == "demo"
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["last-dataset"]


PUT: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": lambda path: path.mkdir(),
    "no name": lambda path: path.write_text("../elsewhere"),
    "no text": lambda path: path.write_bytes(b"\xff"),
    "too much": lambda path: path.write_bytes(b"a" * 5000),
}


@pytest.mark.parametrize("what", PUT)
def test_another_file_in_the_place_of_the_last_datasets_name(tmp_path: Path, what: str) -> None:
    PUT[what](tmp_path / "last-dataset")
    work = Workspace(tmp_path)
    with pytest.raises(DatasetError, match=r"last-dataset does not name a dataset: .*; remove that file, or give"):
        work.last_dataset()
    if what != "a folder":
        work.remember_dataset("demo")
        assert work.last_dataset() == "demo"
