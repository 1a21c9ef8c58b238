"""Which rules read a dataset: chosen by its name, by what its data are, or by the caller."""

import pytest

from cache.common.errors import DatasetError
from cache.dataset import read_dataset, write_dataset
from extract.datasets import load_dataset
from tests.helpers.sources import touch, write_files


def test_data_lie_in_a_folder_of_the_datasets_name_by_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, ["data/mine/a/x.avi"])
    dataset, root = load_dataset("mine", None, subset=False, work=tmp_path / "work")
    assert (dataset.name, dataset.source, root) == ("mine", "folder", tmp_path / "data/mine")


def test_a_source_can_be_named_for_a_dataset_of_any_name(tmp_path):
    write_files(tmp_path, {"testTrainMulti_7030_splits/wave_test_split1.txt": "x.avi 1", "hmdb51_org/wave/x.avi": ""})
    dataset, root = load_dataset("part", tmp_path, subset=True, work=tmp_path / "work", source="hmdb51")
    assert (dataset.name, dataset.source, root) == ("part", "hmdb51", tmp_path / "hmdb51_org")


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("mine", None, "neither a folder of <class>/<video> nor a .csv file"),
        ("mine", "imagenet", "there is no source 'imagenet'; choose one of ucf101"),
        ("../mine", None, "cannot name a folder"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, name, source, message):
    with pytest.raises(DatasetError, match=message):
        load_dataset(name, tmp_path / "gone", subset=False, work=tmp_path / "work", source=source)


def test_a_loaded_dataset_survives_being_written_and_read(tmp_path):
    touch(tmp_path, ["data/é ß/漢#!.avi", "data/b/x.mp4"])
    dataset, _ = load_dataset("mine", tmp_path / "data", subset=False, work=tmp_path / "work")
    write_dataset(tmp_path / "dataset.json", dataset)
    assert read_dataset(tmp_path / "dataset.json") == dataset
