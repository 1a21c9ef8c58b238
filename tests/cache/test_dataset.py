"""dataset.json: what is written is read back, and what is unsafe or contradictory is refused."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.common.errors import DatasetError, UnsafePathError
from cache.common.files import read_sealed_json, write_sealed_json
from cache.dataset import (
    Dataset,
    Half,
    Sample,
    Subset,
    Video,
    check_dataset_name,
    check_relative_path,
    group_of,
    read_dataset,
    update_format,
    video_id,
    write_dataset,
)


def a_dataset(**changes: Any) -> Dataset:
    rows: Rows = [
        ("pick/#1_a(b)!+&.avi", 0, {1: "train", 2: "test", 3: "none"}),
        ("Läufer/ü.mp4", 1, {1: "test"}),
        ("unknown.webm", None, {}),
    ]
    return replace(whole(*rows), **changes)


Rows = list[tuple[str, int | None, dict[int, Half]]]


def whole(*rows: tuple[str, int | None, dict[int, Half]]) -> Dataset:
    return Dataset.of_whole_videos("toy", "folder", ("pick", "Läufer"), rows)


def with_spans() -> Dataset:
    """Three spans of one video, one of them unlabelled, and a video as a whole."""
    spans = [
        Sample(video="pick/film", span=(0.0, 2.5), label=0, splits={1: "train"}, line=2),
        Sample(video="pick/film", span=(2.5, 20.000001), label=1, group="b", splits={1: "test"}, line=3),
        Sample(video="pick/film", span=(7.0, 10.0), label=None, line=4),
    ]
    dataset = whole(("pick/film.mp4", 0, {}), ("x.mp4", 1, {}))
    return replace(dataset, samples=(*spans, dataset.samples[1]))


@pytest.mark.parametrize(
    "dataset",
    [
        a_dataset(),
        a_dataset(extra=("pick/spare",)),
        a_dataset(subset=Subset(published_videos=10, published_classes=None, listed_videos=5, missing=("x", "y"))),
        a_dataset(videos=(), samples=(), classes=()),
        with_spans(),
    ],
)
def test_a_dataset_is_read_back_as_it_was_written(tmp_path: Path, dataset: Dataset) -> None:
    write_dataset(tmp_path / "dataset.json", dataset)
    assert read_dataset(tmp_path / "dataset.json") == dataset


def test_halves_of_a_split() -> None:
    dataset = a_dataset()
    assert [video.id for video in dataset.half(1, "train")] == ["pick/#1_a(b)!+&"]
    assert [video.id for video in dataset.half(1, "test")] == ["Läufer/ü"]
    assert dataset.half(3, "test") == ()


def test_the_id_of_a_span_is_a_media_fragment() -> None:
    assert with_spans().noun == "samples"
    assert Dataset.of_whole_videos("d", "folder", ("a",), [("a/one.avi", 0, {1: "train"})]).noun == "videos"
    assert [sample.id for sample in with_spans().samples] == [
        "pick/film#t=0,2.5",
        "pick/film#t=2.5,20.000001",
        "pick/film#t=7,10",
        "x",
    ]
    assert Sample(video="a", span=(0.0, 1e-5), label=0).id == "a#t=0,0.00001"


def test_a_group_is_the_one_given_else_what_the_videos_name_tells() -> None:
    assert [sample.group_name for sample in with_spans().samples] == ["pick/film", "b", "pick/film", "x"]


def test_format_1_is_read_as_samples_that_are_videos(tmp_path: Path) -> None:
    dataset, file = a_dataset(extra=("pick/spare",)), tmp_path / "dataset.json"
    labels = {sample.video: (sample.label, sample.splits) for sample in dataset.samples}
    videos = [asdict(video) | dict(zip(("label", "splits"), labels[video.id], strict=True)) for video in dataset.videos]
    content = {"format": 1, **asdict(dataset), "videos": videos}
    del content["samples"]
    write_sealed_json(file, content)
    assert read_dataset(file) == dataset
    update_format(file)
    assert (read_dataset(file), read_sealed_json(file)["format"]) == (dataset, 2)


def test_classes_in_one_half_only_are_named() -> None:
    dataset = whole(("pick/a.avi", 0, {1: "test"}), ("b.avi", 1, {1: "train", 2: "train"}), ("c.avi", 1, {1: "test"}))
    assert dataset.one_sided_notes(1) == ["classes in the test half only, so that no head learns them: pick"]
    assert dataset.one_sided_notes(2) == ["classes in the training half only, so that they are not tested: Läufer"]
    assert dataset.class_counts() == {"pick": 1, "Läufer": 2}


def test_a_split_that_is_not_there_is_named_with_those_that_are() -> None:
    dataset = whole(("a.avi", 0, {2: "train"}))
    with pytest.raises(DatasetError, match=r"no split 1; it has \[2\]"):
        dataset.half(1, "train")
    with pytest.raises(DatasetError, match="no half 'tests'; it has 'train', 'test'"):
        dataset.half(2, "tests")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "../up.avi",
        "a/../../b.avi",
        "a/./b.avi",
        "a//b.avi",
        "a/",
        "nul\0.avi",
        "line\nfeed.avi",
        "tab\t.avi",
        "paragraph\u2029.avi",
        "back\\slash.avi",
        "http://host/a.avi",
        "s3+x://bucket/a.avi",
        "zip::a.avi",
    ],
)
def test_paths_that_could_leave_the_root_are_refused(path: str) -> None:
    with pytest.raises(UnsafePathError):
        check_relative_path(path)
    with pytest.raises(UnsafePathError):
        Video(id="fine", path=path)
    with pytest.raises(UnsafePathError):
        Video(id=path, path="fine.avi")


@given(st.text())
def test_an_accepted_path_stays_below_its_root(path: str) -> None:
    try:
        check_relative_path(path)
    except UnsafePathError:
        return
    joined = Path("/root") / path
    assert joined.is_relative_to("/root")
    assert ".." not in joined.parts
    assert joined != Path("/root")


@pytest.mark.parametrize("path", ["a.avi", "pick/#1_(x)!+&.avi", "a b/ü…/.hidden.mp4", "c:d.avi", "x..y/z.avi"])
def test_odd_but_harmless_paths_are_accepted(path: str) -> None:
    assert check_relative_path(path) == path


def test_an_id_is_the_path_without_its_last_suffix() -> None:
    assert video_id("a/b.c.avi") == "a/b.c"
    assert video_id("noext") == "noext"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", ".x", "a b", "ü", "x" * 101, "a\n"])
def test_names_that_cannot_name_a_folder_are_refused(name: str) -> None:
    with pytest.raises(DatasetError, match="cannot name a folder"):
        check_dataset_name(name)


def test_contradictions_are_refused() -> None:
    with pytest.raises(DatasetError, match=r"'a/b.avi' and 'a/b.mp4' have one id"):
        whole(("a/b.avi", 0, {}), ("a/b.mp4", 1, {}))
    with pytest.raises(DatasetError, match="'pick'"):
        a_dataset(classes=("pick", "pick"))
    with pytest.raises(DatasetError, match=r"label 2 is outside 0\.\.1"):
        whole(("a.avi", 2, {}))
    with pytest.raises(DatasetError, match="split 4"):
        Sample(video="a", label=0, splits={4: "train"})
    with pytest.raises(DatasetError, match="'both'"):
        Sample(video="a", label=0, splits={1: "both"})  # type: ignore[dict-item]
    for span in ((-1.0, 2.0), (2.0, 2.0), (3.0, 2.0), (0.0, float("inf")), (float("nan"), 1.0), (0.0, 1e30)):
        with pytest.raises(DatasetError, match="before its end, in seconds"):
            Sample(video="a", span=span, label=0)
    sample = Sample(video="pick/film", span=(1.0, 2.0), label=0)
    with pytest.raises(DatasetError, match="sample 'pick/film#t=1,2' twice"):
        replace(with_spans(), samples=(sample, sample))
    with pytest.raises(DatasetError, match="sample 'pick/film#t=1,2' is of a video"):
        a_dataset(samples=(sample,))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b'{"format": 3}',
        b'{"format": 1, "name": "x"}',
        b"\xff\xfe",
        b'{"format": 1, "name": "x", "source": "s", "classes": 3, "videos": [], "subset": null, "extra": []}',
    ],
)
def test_a_file_that_is_no_dataset_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "dataset.json"
    file.write_bytes(content)
    with pytest.raises(DatasetError, match=r"dataset\.json"):
        read_dataset(file)


def test_a_dataset_that_was_tampered_with_cannot_name_unsafe_paths(tmp_path: Path) -> None:
    file = tmp_path / "dataset.json"
    write_dataset(file, a_dataset())
    value = read_sealed_json(file)
    value["videos"][0]["path"] = "../../etc/passwd"
    write_sealed_json(file, value)
    with pytest.raises(UnsafePathError, match=r"\.\./"):
        read_dataset(file)


def test_a_dataset_that_was_edited_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "dataset.json"
    write_dataset(file, a_dataset())
    assert json.loads(file.read_text())["classes"] == ["pick", "Läufer"]
    file.write_text(file.read_text().replace('"label": 0', '"label": 1'))
    with pytest.raises(DatasetError, match="not as it was written"):
        read_dataset(file)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="missing; extract"):
        read_dataset(tmp_path / "dataset.json")


@pytest.mark.parametrize(
    ("video", "expected"),
    [
        ("UCF-101/Archery/v_Archery_g03_c02", "UCF-101/Archery/v_Archery_g03"),
        ("a/v_x_g01_y_g07_c01", "a/v_x_g01_y_g07"),
        ("a/v_x_g7", "a/v_x_g7"),
        ("demo/circle_g1", "demo/circle_g1"),
        ("wave/TrumanShow_wave_f_nm_np1_fr_med_26", "wave/TrumanShow_wave"),
        ("wave/TrumanShow_wave_u_cm_np2_le_goo_1", "wave/TrumanShow_wave"),
        ("climb/(HQ)_Rock_climb_f_cm_np1_le_med_2", "climb/(HQ)_Rock_climb"),
        ("anything/else", "anything/else"),
        ("a/big_goal", "a/big_goal"),
        ("big_gallery/else", "big_gallery/else"),
    ],
)
def test_groups_show_in_names(video, expected):
    assert group_of(video) == expected
