"""Manifests: CSV in, dataset out, every refusal with file and line."""

import csv
import io
import os
import shutil
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.common.errors import DatasetError, UnsafePathError
from extract.datasets import load_dataset
from extract.datasets.manifest import read_manifest
from tests.helpers.sources import HOSTILE_PATHS, listed, names, refusal, touch, write_files

HEADER = "video,label,split1\n"


def manifest(folder, text):
    return write_files(folder, {"mine.csv": text}) / "mine.csv"


def load(file, subset=False):
    return load_dataset("mine", file, subset=subset, work=file.parent / "work")


def test_labels_splits_and_unlabelled_videos(tmp_path):
    lines = [
        "\ufeffvideo,split2,label,split1",
        "b/x.mp4,test, wave ,train",
        "",
        '"a, b.avi",,climb,test',
        "c.avi,,,none",
    ]
    text = "\r\n".join(lines)
    dataset = read_manifest("mine", manifest(tmp_path, text))
    assert dataset.classes == ("climb", "wave")
    assert listed(dataset) == [
        ("a, b.avi", 0, {1: "test", 2: "none"}),
        ("b/x.mp4", 1, {1: "train", 2: "test"}),
        ("c.avi", None, {1: "none", 2: "none"}),
    ]


def read_both(tmp_path, content):
    """The videos of a manifest that names x.avi as wave for training and y.avi as climb for testing."""
    dataset = read_manifest("mine", manifest(tmp_path, content))
    return [(path, dataset.classes[label], splits[1]) for path, label, splits in listed(dataset)]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffvideo,label,split1\r\n\r\n   \r\nx.avi,wave,train\r\n\t\r\ny.avi,climb,test\r\n\r\n",
        "Video,LABEL,Split1\nx.avi,wave,train\ny.avi,climb,test\n",
        "video;label;split1\nx.avi;wave;train\ny.avi;climb;test\n",
        "\ufeffSep=;\nvideo;label;split1\nx.avi;wave;train\ny.avi;climb;test\n".replace("Sep", "sep"),
        "video\tlabel\tsplit1\nx.avi\twave\ttrain\ny.avi\tclimb\ttest\n",
        "video,label,split1,,\nx.avi,wave,train,,\n,,,,\ny.avi,climb,test\n,,,\n , ,\n",
        "split1,video,label\ntrain,./x.avi,wave\ntest,././y.avi,climb",
        '\ufeff"label","split1","video"\rwave,train,"x.avi"\rclimb,test,y.avi\r',
    ],
)
def test_what_spreadsheets_write_is_read(tmp_path, text):
    assert read_both(tmp_path, text) == [("x.avi", "wave", "train"), ("y.avi", "climb", "test")]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf16_is_named_for_what_it_is(tmp_path, encoding):
    with pytest.raises(DatasetError, match=r"mine\.csv is UTF-16: save it as UTF-8"):
        read_manifest("mine", manifest(tmp_path, f"{HEADER}x.avi,wave,train\n".encode(encoding)))


rows = st.dictionaries(names, st.tuples(names, st.sampled_from(["train", "test", "none", ""])), min_size=1, max_size=20)


@given(rows)
def test_any_names_come_back_as_they_were_listed(tmp_path_factory, videos):
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["video", "label", "split1"])
    writer.writerows([f"{name}.avi", *rest] for name, rest in videos.items())
    dataset = read_manifest("mine", manifest(tmp_path_factory.mktemp("manifest"), text.getvalue()))
    assert {each.id: (dataset.classes[each.label], each.splits[1]) for each in dataset.samples} == {
        name: (label, half or "none") for name, (label, half) in videos.items()
    }


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_parser(tmp_path_factory, content):
    file = manifest(tmp_path_factory.mktemp("manifest"), HEADER.encode() + content)
    refused = refusal(lambda: read_manifest("mine", file))
    assert refused is None or str(file) in refused


@pytest.mark.parametrize("path", [path for what, path in HOSTILE_PATHS.items() if what != "here"])
def test_hostile_paths_are_refused_with_file_and_line(tmp_path, path):
    with pytest.raises(UnsafePathError, match=r"mine\.csv, line 3: "):
        read_manifest("mine", manifest(tmp_path, f"{HEADER}ok.avi,wave,train\n{path},wave,train\n"))


def test_a_newline_in_a_quoted_path_is_refused(tmp_path):
    with pytest.raises(UnsafePathError, match="control characters"):
        read_manifest("mine", manifest(tmp_path, f'{HEADER}"a\nb.avi",wave,train\n'))


@pytest.mark.parametrize("link", ["videos/x.avi", "videos"])
def test_links_that_lead_outside_are_refused_with_file_and_line(tmp_path, link):
    touch(tmp_path / "outside", ["x.avi"])
    file = manifest(tmp_path / "inside", f"{HEADER}videos/x.avi,wave,train\n")
    (file.parent / link).parent.mkdir(exist_ok=True)
    (file.parent / link).symlink_to(tmp_path / "outside" / ("x.avi" if link.endswith(".avi") else ""))
    with pytest.raises(UnsafePathError, match=r"mine\.csv, line 2: .*leads outside"):
        load(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: columns are ''"),
        ("video;label;split1\n", "lists no videos"),
        (
            "video|label|split1\n",
            r"line 1: columns are 'video\|.*', without video, label, split1 .*give a CSV",
        ),
        ("video,label\nx.avi,a\n", "line 1: columns are 'video, label', without split1;"),
        ("video,label,split1,split1\n", "line 1: columns are .*, twice with split1;"),
        ("video,label,split1,split4\n", "line 1: columns are .*, with an unknown split4;"),
        ("video,label,split1,start\n", "line 1: columns are .*, without end;"),
        ("video,label,,split1\n", r"line 1: columns are .*, with an unknown \(empty\);"),
        (f"{HEADER}x.avi,wave,train,3\n", "line 2: 4 values for the 3 columns"),
        (HEADER, "lists no videos"),
        (f"{HEADER}x.avi,wave\n", "line 2: 2 values for the 3 columns"),
        (f"{HEADER}x.avi,wave,Train\n", "line 2: 'Train' is not train, test or none"),
        (f"{HEADER}x.avi,,test\n", "line 2: a video without a label cannot be in the test half"),
        (f"{HEADER}x.avi,a,train\nx.avi,a,test\n", "both halves of split 1: train by .*line 2, test by .*line 3"),
        (f"{HEADER}x.avi,a,train\nx.avi,b,train\n", "line 3: video 'x.avi' has another class than in .*line 2"),
        (f"{HEADER}x.avi,a,train\nx.mp4,a,train\n", "line 3: .* same id as 'x.avi' .*line 2"),
        (f"{HEADER}x.txt,a,train\n", "line 2: .* does not end as a video"),
        (f'{HEADER}"x.avi,a,train\n', "not CSV"),
    ],
)
def test_contradictions_are_refused_with_file_and_line(tmp_path, text, message):
    with pytest.raises(DatasetError, match=message):
        read_manifest("mine", manifest(tmp_path, text))


SPANS = """\
End;start;Video;label;split1;group
2,5;0;film.mp4;wave;train;
20;2.5;film.mp4;climb;test;a
;;other.mp4;wave;test;b
"""


def test_a_row_of_a_million_commas_takes_no_time(tmp_path):
    began = time.process_time()
    assert len(read_manifest("mine", manifest(tmp_path, f"{HEADER}x.avi,a,train{',' * 1_000_000}\n")).videos) == 1
    assert time.process_time() - began < 5


def test_other_encodings_and_files_are_named_for_what_they_are(tmp_path):
    said = []
    (tmp_path / "list.csv").write_bytes(f"{HEADER}x.avi,été,train\n".encode("latin-1"))
    assert read_manifest("mine", tmp_path / "list.csv", say=said.append).classes == ("été",)
    assert "is not UTF-8 and is read as Latin-1" in said[0]
    for start in (b"PK\x03\x04", b"\xd0\xcf\x11\xe0", b"\x1f\x8b"):
        (tmp_path / "list.csv").write_bytes(start + bytes(100))
        with pytest.raises(DatasetError, match="own file or an archive: save it as CSV"):
            read_manifest("mine", tmp_path / "list.csv")
    (tmp_path / "list.csv").unlink()
    os.mkfifo(tmp_path / "list.csv")
    (tmp_path / "zero.csv").symlink_to("/dev/zero")
    for name in ("list.csv", "zero.csv"):
        with pytest.raises(DatasetError, match="not a plain file"):
            read_manifest("mine", tmp_path / name)


def test_rows_with_start_and_end_are_spans_of_one_video(tmp_path):
    touch(tmp_path, ["film.mp4", "other.mp4"])
    said = []
    dataset, _ = load_dataset("mine", manifest(tmp_path, SPANS), subset=False, work=tmp_path / "work", say=said.append)
    assert [video.id for video in dataset.videos] == ["film", "other"]
    assert [(each.id, each.label, each.group_name, each.line) for each in dataset.samples] == [
        ("film#t=0,2.5", 1, "film", 2),
        ("film#t=2.5,20", 0, "a", 3),
        ("other", 1, "b", None),
    ]
    assert said == []


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x.avi,a,train,-1,2,", "line 2: start '-1' and end '2' are not two numbers of seconds"),
        ("x.avi,a,train,1,,", "line 2: start '1' and end '' are not two numbers"),
        ("x.avi,a,train,1,nan,", "line 2: start '1' and end 'nan'"),
        ("x.avi,a,train,1e1,20,", "line 2: start '1e1'"),
        ("x.avi,a,train,0:01,0:02,", "line 2: start '0:01'"),
        ("x.avi,a,train,2,2.0,", "line 2: the span from 2 s to 2.0 s does not end after its start"),
        ("x.avi,a,train,3,2,", "line 2: the span from 3 s to 2 s does not end after"),
        ("x.avi,a,train,0,99999999,", "line 2: the span from 0 s"),
        ("x.avi,a,train,1,2,\nx.avi,b,train,1.0,2,", "line 3: span 1,2 of video 'x.avi' has another class than in"),
        ("x.avi,a,train,1,2,\nx.avi,a,test,1,2,", "span 1,2 of video 'x.avi' is in both halves of split 1"),
        ("x.avi,a,train,1,2,g\nx.avi,a,train,1,2,h", "line 3: span 1,2 of video 'x.avi' has another group"),
        ("x.avi,a,train,,,g\ny.avi,a,test,,,g", "line 3: group 'g' is in the test half of split 1 here, in the train"),
    ],
)
def test_impossible_spans_and_groups_are_refused_with_file_and_line(tmp_path, row, message):
    with pytest.raises(DatasetError, match=message):
        read_manifest("mine", manifest(tmp_path, f"video,label,split1,start,end,group\n{row}\n"))


def test_recordings_on_both_sides_are_told(tmp_path):
    rows = "x.avi,a,train,0,1\nx.avi,b,test,5,6\nv_g01_c01.avi,a,train,,\nv_g01_c02.avi,a,test,,\n"
    touch(tmp_path, ["x.avi", "v_g01_c01.avi", "v_g01_c02.avi"])
    file, said = manifest(tmp_path, f"video,label,split1,start,end\n{rows}"), []
    load_dataset("mine", file, subset=False, work=tmp_path / "work", say=said.append)
    assert "2 recordings are on both sides of split 1" in said[0]
    assert "v_g01, x" in said[0]


def test_missing_files_are_an_error_unless_a_subset_is_asked_for(tmp_path):
    file = manifest(tmp_path, f"{HEADER}x.avi,a,train\ny.avi,a,test\n")
    touch(tmp_path, ["x.avi", "unlisted.avi"])
    with pytest.raises(DatasetError, match=r"1 of 2 listed videos are missing: y\n(.|\n)*SUBSET=1"):
        load(file)
    dataset, root = load(file, subset=True)
    assert ([video.id for video in dataset.videos], dataset.subset.missing) == (["x"], ("y",))
    assert (dataset.subset.published_videos, dataset.subset.listed_videos, root) == (None, 2, tmp_path)


def test_a_name_that_is_too_long_costs_its_video(tmp_path):
    long = "n" * 300
    file = manifest(tmp_path, f"{HEADER}x.avi,a,train\n{long}.avi,a,test\n")
    touch(tmp_path, ["x.avi"])
    with pytest.raises(DatasetError, match="1 of 2 listed videos are missing: nnn"):
        load(file)
    dataset, _ = load(file, subset=True)
    assert ([video.id for video in dataset.videos], dataset.subset.missing) == (["x"], (long,))


def test_a_missing_manifest_says_what_was_looked_for(tmp_path):
    with pytest.raises(DatasetError, match=r"gone\.csv, which is not there; give a CSV"):
        load(tmp_path / "gone.csv")


@pytest.mark.shared
def test_the_kinetics_files_come_in_through_a_manifest(shared, tmp_path):
    for file in (shared / "data/kinetics-sample").glob("*.mp4"):
        shutil.copy(file, tmp_path)
    file = manifest(tmp_path, f"{HEADER}SOX5yA1l24A.mp4,one,train\nR6llTwEh07w.mp4,two,test\n")
    dataset, root = load(file)
    assert [video.id for video in dataset.videos] == ["R6llTwEh07w", "SOX5yA1l24A"]
    assert dataset.subset is None
    assert all((root / video.path).is_file() for video in dataset.videos)
