"""HMDB-51: one list per class and split, names full of punctuation, counts checked."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.common.errors import DatasetError, UnsafePathError
from extract.datasets import hmdb51, load_dataset
from tests.helpers.sources import HOSTILE_PATHS, listed, names, refusal, touch, write_files

WAVE = "(HQ)_300+_Yards!!!_&_[x];~#_wave_0.avi 1 \nb_wave_1.avi 2 \nc_wave_2.avi 0 \n"


def lists(folder, **files):
    return write_files(folder, {f"{name}.txt": text for name, text in files.items()})


def load(root, subset=True):
    return load_dataset("hmdb51", root, subset=subset, work=root / "work")


def test_marks_trailing_spaces_and_punctuation(tmp_path):
    folder = lists(tmp_path, wave_test_split1=WAVE, climb_stairs_test_split1="x.avi 1\r\n", README="not a list")
    dataset = hmdb51.read_lists("hmdb51", folder)
    assert dataset.classes == ("climb_stairs", "wave")
    assert [(path, label, splits[1]) for path, label, splits in listed(dataset)] == [
        ("climb_stairs/x.avi", 0, "train"),
        ("wave/(HQ)_300+_Yards!!!_&_[x];~#_wave_0.avi", 1, "train"),
        ("wave/b_wave_1.avi", 1, "test"),
        ("wave/c_wave_2.avi", 1, "none"),
    ]


@given(st.dictionaries(names, st.sampled_from("012"), max_size=20), st.sampled_from([" \n", "\r\n", "\t\r\n", "\n"]))
def test_any_names_come_back_as_they_were_listed(tmp_path_factory, marks, end):
    folder = tmp_path_factory.mktemp("lists")
    lists(folder, wave_test_split1="".join(f"{name}.avi {mark}{end}" for name, mark in marks.items()))
    dataset = hmdb51.read_lists("hmdb51", folder)
    half = {"0": "none", "1": "train", "2": "test"}
    assert {sample.id: sample.splits[1] for sample in dataset.samples} == {
        f"wave/{name}": half[mark] for name, mark in marks.items()
    }


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_parser(tmp_path_factory, content):
    folder = lists(tmp_path_factory.mktemp("lists"), wave_test_split1=content)
    refused = refusal(lambda: hmdb51.read_lists("hmdb51", folder))
    assert refused is None or "wave_test_split1.txt" in refused


@pytest.mark.parametrize("path", HOSTILE_PATHS.values(), ids=HOSTILE_PATHS.keys())
def test_hostile_paths_are_refused_with_file_and_line(tmp_path, path):
    with pytest.raises(UnsafePathError, match=r"wave_test_split1\.txt, line 4: "):
        hmdb51.read_lists("hmdb51", lists(tmp_path, wave_test_split1=f"{WAVE}{path} 1 \n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x.avi 3", r"line 1: 'x.avi 3' is not a file name and 1 \(training\)"),
        ("x.avi", r"line 1: 'x.avi' is not a file name and 1"),
        ("climb/x.avi 1", r"line 1: 'climb/x.avi' names a folder; expected a file name of class 'wave'"),
        ("x.txt 1", r"line 1: .* does not end as a video"),
        ("x.avi 1\nx.avi 2", r"both halves of split 1: train by .*line 1, test by .*line 2"),
        ("x.avi 1\nx.avi 1", r"twice in split 1"),
    ],
)
def test_contradictions_are_refused_with_file_and_line(tmp_path, text, message):
    with pytest.raises(DatasetError, match=message):
        hmdb51.read_lists("hmdb51", lists(tmp_path, wave_test_split1=text))


def test_every_class_needs_the_splits_that_any_has(tmp_path):
    lists(tmp_path, wave_test_split1=WAVE, wave_test_split2=WAVE, climb_test_split1="x.avi 1")
    with pytest.raises(DatasetError, match=r"lacks 1 of its lists: climb_test_split2\.txt"):
        hmdb51.read_lists("hmdb51", tmp_path)


def test_split_one_is_needed(tmp_path):
    with pytest.raises(DatasetError, match=r"wave_test_split1\.txt; .*make data DATASET=hmdb51"):
        hmdb51.read_lists("hmdb51", lists(tmp_path, wave_test_split3=WAVE))


def test_a_folder_without_lists_and_a_missing_root_say_what_to_do(tmp_path):
    with pytest.raises(DatasetError, match=r"has no <class>_test_split<N>\.txt; .*DATA="):
        hmdb51.read_lists("hmdb51", tmp_path)
    with pytest.raises(DatasetError, match=r"hmdb51_org, which is not there; .*make data DATASET=hmdb51.*DATA="):
        load(tmp_path)


def test_a_class_folder_without_a_list_is_extra(tmp_path):
    lists(tmp_path / "testTrainMulti_7030_splits", wave_test_split1=WAVE)
    touch(tmp_path / "hmdb51_org", ["wave/b_wave_1.avi", "swim/x.avi"])
    dataset, _ = load(tmp_path)
    assert ([video.id for video in dataset.videos], dataset.extra) == (["wave/b_wave_1"], ("swim/x",))
    with pytest.raises(DatasetError, match=r"1 video files are in no list: swim/x\.avi\n"):
        load(tmp_path, subset=False)


@pytest.mark.shared
def test_the_official_lists_have_the_published_counts(shared):
    dataset = hmdb51.read_lists("hmdb51", shared / "data/official-splits/testTrainMulti_7030_splits")
    assert (len(dataset.videos), len(dataset.classes)) == (6_766, 51)
    for split in (1, 2, 3):
        counts = Counter(sample.splits[split] for sample in dataset.samples)
        assert counts == {"train": 3_570, "test": 1_530, "none": 1_666}


@pytest.mark.shared
def test_all_six_videos_of_the_sample_are_in(shared):
    dataset, root = load(shared / "data/hmdb51-sample")
    assert len(dataset.videos) == 6
    assert all((root / video.path).is_file() for video in dataset.videos)
    ids = [video.id for video in dataset.videos]
    assert "golf/Golf_Tips_-_Hit_The_Driver_300+_Yards!!!_golf_f_nm_np1_fr_med_0" in ids
    assert any(id_.startswith("climb/(HQ)_Rock_Climbing") for id_ in ids)
    assert (len(dataset.subset.missing), dataset.subset.listed_videos) == (524, 530)
