"""dataset.json: what is written is read back, and what is unsafe or contradictory is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.common.errors import DatasetError, UnsafePathError
from cache.common.files import read_sealed_json, write_sealed_json
from cache.dataset import (
    Dataset,
    Subset,
    Video,
    check_dataset_name,
    check_relative_path,
    group_of,
    read_dataset,
    video_id,
    write_dataset,
)


def a_dataset(**changes: Any) -> Dataset:
    videos = (
        Video(id="pick/#1_a(b)!+&", path="pick/#1_a(b)!+&.avi", label=0, splits={1: "train", 2: "test", 3: "none"}),
        Video(id="Läufer/ü", path="Läufer/ü.mp4", label=1, splits={1: "test"}),
        Video(id="unknown", path="unknown.webm", label=None),
    )
    fields: dict[str, Any] = {"name": "toy", "source": "folder", "classes": ("pick", "Läufer"), "videos": videos}
    return Dataset(**{**fields, **changes})


@pytest.mark.parametrize(
    "dataset",
    [
        a_dataset(),
        a_dataset(extra=("pick/spare",)),
        a_dataset(subset=Subset(published_videos=10, published_classes=None, listed_videos=5, missing=("x", "y"))),
        a_dataset(videos=(), classes=()),
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


def test_a_split_that_is_not_there_is_named_with_those_that_are() -> None:
    dataset = a_dataset(videos=(Video(id="a", path="a.avi", label=0, splits={2: "train"}),))
    with pytest.raises(DatasetError, match=r"no split 1; it has \[2\]"):
        dataset.half(1, "train")


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
        Video(id="fine", path=path, label=None)
    with pytest.raises(UnsafePathError):
        Video(id=path, path="fine.avi", label=None)


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
    twice = (Video(id="a/b", path="a/b.avi", label=0), Video(id="a/b", path="a/b.mp4", label=1))
    with pytest.raises(DatasetError, match=r"'a/b.avi' and 'a/b.mp4' have one id"):
        a_dataset(videos=twice)
    with pytest.raises(DatasetError, match="'pick'"):
        a_dataset(classes=("pick", "pick"))
    with pytest.raises(DatasetError, match=r"label 2 is outside 0\.\.1"):
        a_dataset(videos=(Video(id="a", path="a.avi", label=2),))
    with pytest.raises(DatasetError, match="split 4"):
        Video(id="a", path="a.avi", label=0, splits={4: "train"})
    with pytest.raises(DatasetError, match="'both'"):
        Video(id="a", path="a.avi", label=0, splits={1: "both"})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b'{"format": 2}',
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
