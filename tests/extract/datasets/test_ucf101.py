"""UCF-101: lists parsed as published, contradictions refused with file and line, counts checked."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.common.errors import DatasetError, UnsafePathError
from extract.datasets import load_dataset, ucf101
from tests.helpers.sources import HOSTILE_PATHS, names, refusal, touch, write_files

CLASSES = "1 Archery\r\n2 Basketball\r\n"
TRAIN = "Archery/v_Archery_g08_c01.avi 1\r\nBasketball/v_Basketball_g08_c01.avi 2  \r\n\r\n"
TEST = "Archery/v_Archery_g01_c01.avi\r\n"


def lists(folder, classes=CLASSES, train=TRAIN, test=TEST, **more):
    files = {"classInd.txt": classes, "trainlist01.txt": train, "testlist01.txt": test}
    return write_files(folder, files | {f"{name}.txt": text for name, text in more.items()})


def data_folder(root, **changed):
    """A data folder whose listed videos all exist."""
    lists(root / "ucfTrainTestlist", **changed)
    dataset = ucf101.read_lists("ucf101", root / "ucfTrainTestlist")
    touch(root / "UCF-101", [video.path for video in dataset.videos])
    return root


def load(root, subset=True):
    return load_dataset("ucf101", root, subset=subset, work=root / "work")


def test_crlf_trailing_spaces_and_blank_lines(tmp_path):
    dataset = ucf101.read_lists("ucf101", lists(tmp_path))
    assert dataset.classes == ("Archery", "Basketball")
    assert [(each.id, each.label, dict(each.splits)) for each in dataset.samples] == [
        ("Archery/v_Archery_g01_c01", 0, {1: "test"}),
        ("Archery/v_Archery_g08_c01", 0, {1: "train"}),
        ("Basketball/v_Basketball_g08_c01", 1, {1: "train"}),
    ]


@given(st.lists(st.tuples(names, names), unique=True, max_size=20), st.sampled_from(["\n", "\r\n", " \r\n"]))
def test_any_names_come_back_as_they_were_listed(tmp_path_factory, videos, end):
    folder = tmp_path_factory.mktemp("lists")
    classes = sorted({name for name, _ in videos}) or ["A"]
    train = [f"{name}/{stem}.avi {classes.index(name) + 1}" for name, stem in videos]
    numbered = [f"{number} {name}" for number, name in enumerate(classes, start=1)]
    lists(folder, end.join(numbered), end.join(train), "")
    dataset = ucf101.read_lists("ucf101", folder)
    assert dataset.classes == tuple(classes)
    assert {(sample.id, dataset.classes[sample.label]) for sample in dataset.samples} == {
        (f"{name}/{stem}", name) for name, stem in videos
    }


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_parser(tmp_path_factory, content):
    folder = lists(tmp_path_factory.mktemp("lists"), train=content)
    refused = refusal(lambda: ucf101.read_lists("ucf101", folder))
    assert refused is None or "trainlist01.txt" in refused


@pytest.mark.parametrize("path", HOSTILE_PATHS.values(), ids=HOSTILE_PATHS.keys())
def test_hostile_paths_are_refused_with_file_and_line(tmp_path, path):
    with pytest.raises(UnsafePathError, match=r"trainlist01\.txt, line 4: "):
        ucf101.read_lists("ucf101", lists(tmp_path, train=f"{TRAIN}{path} 1"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train": "Curling/v_Curling_g01_c01.avi 3"}, r"trainlist01.txt, line 1: unknown class 'Curling'"),
        ({"train": "Archery/v.avi"}, r"line 1: .* lacks the class's number \(1\)"),
        ({"train": "Archery/v.avi 2"}, r"line 1: class 'Archery' has number 2 here, 1 in classInd"),
        ({"train": "Archery/v.avi " + 500 * "9"}, r"line 1: .* lacks the class's number"),
        ({"train": "Archery/v.avi " + 5000 * "9"}, r"line 1: a line of 5,014 characters"),
        ({"train": "v.avi 1"}, r"line 1: 'v.avi' is not <Class>/<video>"),
        ({"train": "Archery/v.txt 1"}, r"line 1: .* does not end as a video"),
        ({"train": "Archery/v.avi 1\nArchery/v.avi 1"}, r"twice in split 1: .*line 1, .*line 2"),
        ({"train": "Archery/v.avi 1\nArchery/v.mp4 1"}, r"line 2: .* has the same id as 'Archery/v.avi' \(.*line 1\)"),
        (
            {"test": f"{TEST}Archery/v_Archery_g08_c01.avi"},
            r"both halves of split 1: .*trainlist01.txt, line 1, .*line 2",
        ),
        ({"classes": "1 A\n3 B"}, r"class numbers are 1, 3;"),
        ({"classes": "1 A\n1 B"}, r"line 2: class 1 'B' repeats"),
        ({"classes": "1 A\n2 A"}, r"line 2: class 2 'A' repeats"),
        ({"classes": "Archery"}, r"line 1: 'Archery' is not a class's number and name"),
        ({"classes": "1 ../A"}, r"classInd.txt, line 1"),
        ({"classes": ""}, r"class numbers are none"),
    ],
)
def test_contradictions_are_refused_with_file_and_line(tmp_path, changed, message):
    with pytest.raises(DatasetError, match=message):
        ucf101.read_lists("ucf101", lists(tmp_path, **changed))


def test_splits_two_and_three_may_be_absent_but_not_by_halves(tmp_path):
    both = lists(tmp_path, trainlist03=TEST.replace(".avi", ".avi 1"), testlist03="Archery/v_Archery_g08_c01.avi")
    dataset = ucf101.read_lists("ucf101", both)
    assert {each.id[-7:]: dict(each.splits) for each in dataset.samples if each.label == 0} == {
        "g01_c01": {1: "test", 3: "train"},
        "g08_c01": {1: "train", 3: "test"},
    }
    (tmp_path / "testlist03.txt").unlink()
    with pytest.raises(DatasetError, match=r"testlist03\.txt, which is not there"):
        ucf101.read_lists("ucf101", tmp_path)


@pytest.mark.parametrize("gone", ["classInd.txt", "trainlist01.txt", "testlist01.txt"])
def test_a_missing_list_says_what_was_looked_for_and_what_to_do(tmp_path, gone):
    lists(tmp_path)
    (tmp_path / gone).unlink()
    with pytest.raises(DatasetError, match=rf"{gone}, which is not there; .*make data DATASET=ucf101.*DATA="):
        ucf101.read_lists("ucf101", tmp_path)


def test_a_missing_root_says_what_was_looked_for_and_what_to_do(tmp_path):
    with pytest.raises(DatasetError, match=r"UCF-101, which is not there; .*make data DATASET=ucf101.*DATA="):
        load(tmp_path)


def test_incomplete_without_subset_is_an_error_that_names_what_is_missing(tmp_path):
    root = data_folder(tmp_path)
    (root / "UCF-101/Archery/v_Archery_g01_c01.avi").unlink()
    touch(root, ["UCF-101/Archery/extra.avi"])
    with pytest.raises(DatasetError) as caught:
        load(root, subset=False)
    for part in (
        "2 classes, where UCF-101 as published has 101",
        "2 training videos of split 1, where UCF-101 as published has 9,537",
        "1 of 3 listed videos are missing: Archery/v_Archery_g01_c01\n",
        "1 video files are in no list: Archery/extra.avi\n",
        "SUBSET=1 (--subset)",
    ):
        assert part in str(caught.value)


def test_a_subset_says_what_it_lacks(tmp_path):
    root = data_folder(tmp_path)
    (root / "UCF-101/Archery/v_Archery_g01_c01.avi").unlink()
    touch(root, ["UCF-101/Archery/extra.avi"])
    dataset, videos = load(root)
    assert videos == root / "UCF-101"
    assert [video.id for video in dataset.videos] == ["Archery/v_Archery_g08_c01", "Basketball/v_Basketball_g08_c01"]
    assert dataset.subset.missing == ("Archery/v_Archery_g01_c01",)
    assert (dataset.subset.published_videos, dataset.subset.listed_videos) == (13_320, 3)
    assert dataset.extra == ("Archery/extra",)


def test_a_subset_without_a_single_video_is_an_error(tmp_path):
    root = data_folder(tmp_path / "data")
    for file in (root / "UCF-101").rglob("*.avi"):
        file.unlink()
    with pytest.raises(DatasetError, match="none of the 3 listed videos"):
        load(root)


def test_the_data_folder_may_be_a_link_and_hold_links_to_its_parts(tmp_path):
    root = data_folder(tmp_path / "disk")
    (root / "UCF-101").rename(tmp_path / "videos")
    (root / "UCF-101").symlink_to(tmp_path / "videos")
    (tmp_path / "ucf101").symlink_to(root)
    dataset, videos = load(tmp_path / "ucf101")
    assert videos == tmp_path / "videos"
    assert len(dataset.videos) == 3


def test_latin1_lists_find_files_with_utf8_names_and_latin1_names_are_refused(tmp_path):
    line = "Archery/v_José.avi 1"
    root = data_folder(tmp_path, train=line.encode("latin-1"))
    assert "Archery/v_José" in {video.id for video in load(root)[0].videos}
    (root / "UCF-101/Archery" / os.fsdecode("v_José.avi".encode("latin-1"))).touch()
    with pytest.raises(DatasetError, match="not UTF-8"):
        load(root)


@pytest.mark.shared
def test_the_official_lists_have_the_published_counts(shared):
    dataset = ucf101.read_lists("ucf101", shared / "data/official-splits/ucfTrainTestlist")
    assert (len(dataset.videos), len(dataset.classes)) == (13_320, 101)
    for split, halves in {1: (9_537, 3_783), 2: (9_586, 3_734), 3: (9_624, 3_696)}.items():
        assert (len(dataset.half(split, "train")), len(dataset.half(split, "test"))) == halves


@pytest.mark.shared
def test_a_complete_dataset_is_accepted_and_no_subset(shared, tmp_path):
    official = shared / "data/official-splits/ucfTrainTestlist"
    (tmp_path / "ucfTrainTestlist").symlink_to(official)
    videos = ucf101.read_lists("ucf101", official).videos
    touch(tmp_path / "UCF-101", [video.path for video in videos])
    dataset, _ = load(tmp_path, subset=False)
    assert (dataset.subset, dataset.extra, len(dataset.videos)) == (None, (), 13_320)


@pytest.mark.shared
def test_the_sample_is_a_subset_of_125_videos(shared):
    dataset, _ = load(shared / "data/ucf101-sample")
    assert (len(dataset.videos), len(dataset.classes), dataset.extra) == (125, 5, ())
    assert (len(dataset.half(1, "train")), len(dataset.half(1, "test"))) == (90, 35)
    assert (dataset.subset.missing, dataset.subset.published_videos) == ((), 13_320)
    with pytest.raises(DatasetError, match=r"125 listed videos, .*13,320"):
        load(shared / "data/ucf101-sample", subset=False)
