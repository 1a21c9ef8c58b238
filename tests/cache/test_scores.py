"""Score tables: written, read back, and refused where they cannot be a softmax over clips."""

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.common.errors import MrrnError, ScoreError
from cache.scores import ScoreTable, read_scores, write_scores
from tests.helpers.damage import each_flipped


def a_table(**changes: Any) -> ScoreTable:
    fields: dict[str, Any] = {
        "video_ids": np.array(["a/ü(1)", "a/ü(1)", "b/2"]),
        "spans": np.array([[0, 30], [8, 38], [0, 30]]),
        "labels": np.array([0, 0, 1]),
        "softmax": np.array([[0.9, 0.1], [0.6, 0.4], [0.25, 0.75]], dtype=np.float32),
        "classes": np.array(["pick", "throw"]),
        "run": {"dataset": "toy", "split": 1, "fps": None, "rate": 0.5},
    }
    return ScoreTable(**{**fields, **changes})


def test_a_table_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    table = a_table()
    write_scores(tmp_path / "scores.npz", table)
    read = read_scores(tmp_path / "scores.npz")
    for name in ("video_ids", "spans", "labels", "softmax", "classes"):
        np.testing.assert_array_equal(getattr(read, name), getattr(table, name))
        assert getattr(read, name).dtype.kind == getattr(table, name).dtype.kind
    assert read.run == table.run


@pytest.mark.parametrize("every", [29, pytest.param(1, marks=pytest.mark.slow)])
def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path: Path, every: int) -> None:
    """An npz carries CRC-32 of each array; what is left are dates and attributes of the archive."""
    table, path, refused = a_table(), tmp_path / "scores.npz", 0
    write_scores(path, table)
    for bit in each_flipped(path, every):
        try:
            read = read_scores(path)
        except ScoreError as error:
            refused += str(path) in str(error)
            continue
        assert read.run == table.run
        for name in ("video_ids", "spans", "labels", "softmax", "classes"):
            assert np.array_equal(getattr(read, name), getattr(table, name)), bit
    assert refused > 100


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), MemoryError()])
def test_what_cannot_be_read_now_is_not_taken_for_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refusing(*_: object) -> None:
        raise error

    monkeypatch.setattr("cache.scores.read_bounded", refusing)
    with pytest.raises(MrrnError, match=r"scores\.npz .*run the same command again"):
        read_scores(tmp_path / "scores.npz")


@pytest.mark.parametrize("run", [[], "run", None, {"fingerprint": 1}, {"fingerprint": {"identity": []}}])
def test_a_run_that_is_no_mapping_is_refused(run: Any) -> None:
    with pytest.raises(ScoreError, match="run and its fingerprint"):
        a_table(run=run)


def test_videos_are_the_means_of_their_clips_with_their_labels() -> None:
    ids, probabilities, labels = a_table().videos()
    assert ids == ["a/ü(1)", "b/2"]
    np.testing.assert_allclose(probabilities, [[0.75, 0.25], [0.25, 0.75]], atol=1e-7)
    assert labels.tolist() == [0, 1]
    assert a_table().label_of == {"a/ü(1)": 0, "b/2": 1}


def test_a_table_without_clips_is_a_table(tmp_path: Path) -> None:
    empty = a_table(
        video_ids=np.array([], dtype=np.str_),
        spans=np.zeros((0, 2), np.int64),
        labels=np.zeros(0, np.int64),
        softmax=np.zeros((0, 2), np.float32),
    )
    write_scores(tmp_path / "scores.npz", empty)
    assert read_scores(tmp_path / "scores.npz").softmax.shape == (0, 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": np.array([0, 0])}, "labels has shape"),
        ({"spans": np.zeros((3, 3), np.int64)}, "spans has shape"),
        ({"softmax": np.full((3, 3), 1 / 3, np.float32)}, "softmax has shape"),
        ({"softmax": np.array([[1, 0], [np.nan, 1], [1, 0]], np.float32)}, r"'a/ü\(1\)' are not finite"),
        ({"softmax": np.array([[1, 0], [1, 0], [2.5, -0.5]], np.float32)}, "'b/2' are not a softmax"),
        ({"softmax": np.array([[1, 0], [1, 0], [1.5, -0.5]], np.float32)}, "'b/2' are not a softmax"),
        ({"labels": np.array([0, 0, 2])}, "'b/2' is outside"),
        ({"labels": np.array([-1, 0, 1])}, "is outside"),
        ({"video_ids": np.array(["a", "b", "a"])}, "do not follow one another"),
    ],
)
def test_what_cannot_be_scores_is_refused_and_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ScoreError, match=words):
        a_table(**changes)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ScoreError, match="train that level first"):
        read_scores(tmp_path / "scores.npz")


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x05\x06" + bytes(18)])
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "scores.npz"
    file.write_bytes(content)
    with pytest.raises(ScoreError, match="not a score table"):
        read_scores(file)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "scores.npz"
    write_scores(file, a_table())
    whole = file.read_bytes()
    for length in range(0, len(whole), 97):
        file.write_bytes(whole[:length])
        with pytest.raises(ScoreError):
            read_scores(file)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    table = a_table()
    arrays = {name: getattr(table, name) for name in ("spans", "labels", "softmax", "classes")}
    ids = np.array([Trap(), "a", "b"], dtype=object)
    np.savez(tmp_path / "scores.npz", video_ids=ids, run=np.asarray(json.dumps({})), **arrays)
    with pytest.raises(ScoreError, match="not a score table"):
        read_scores(tmp_path / "scores.npz")
    assert not (tmp_path / "ran").exists()
