"""Names of folders below work/, and which dataset was extracted last."""

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
