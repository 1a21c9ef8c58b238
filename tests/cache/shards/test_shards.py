"""One contract for both formats: what is stored, what raw libraries see of it, what is refused."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore

from cache.common.errors import CacheError, DamageError
from cache.fingerprint import LEVELS
from cache.shards import BACKENDS, SUFFIXES, Backend, encode, open_shard
from cache.shards.protocol import ShardData, check_span, checksum, damaged_videos, features, read_shard
from cache.shards.writer import ShardWriter, hash_files, write_shard
from tests.helpers.cache import make_shard

IDS = ("pick/#1_a(b)!+&", "Läufer/ü", "z")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return request.param


def written(tmp_path: Path, backend: Backend, data: ShardData) -> Path:
    path = tmp_path / f"shard{SUFFIXES[backend]}"
    write_shard(path, backend, data)
    return path


def with_notes(data: ShardData) -> ShardData:
    return dataclasses.replace(data, notes=json.dumps({"text": "ü €"}, ensure_ascii=False))


@pytest.mark.parametrize("views", [1, 3])
def test_a_shard_is_read_back_as_it_was_written(tmp_path: Path, backend: Backend, views: int) -> None:
    data = with_notes(make_shard(IDS, views))
    reader = open_shard(written(tmp_path, backend, data), backend)
    assert reader.index.video_ids == IDS
    assert reader.index.notes == data.notes
    assert reader.index.levels == LEVELS
    read = read_shard(reader)
    np.testing.assert_array_equal(read.offsets, data.offsets)
    np.testing.assert_array_equal(read.pts_seconds, data.pts_seconds)
    for level in LEVELS:
        np.testing.assert_array_equal(read.features[level], data.features[level])
    assert damaged_videos(reader) == []


def test_any_span_of_any_view_can_be_read(tmp_path: Path, backend: Backend) -> None:
    data = make_long_shard(frames=700)
    reader = open_shard(written(tmp_path, backend, data), backend)
    for start, stop in [(0, 0), (0, 1), (255, 257), (256, 512), (0, 700), (699, 700), (100, 600)]:
        np.testing.assert_array_equal(features(reader, 0, "low", 1, start, stop), data.features["low"][1, start:stop])


def make_long_shard(frames: int) -> ShardData:
    """One video that is longer than a Zarr chunk."""
    rng = np.random.default_rng(0)
    return ShardData(
        video_ids=("long",),
        offsets=np.array([0, frames]),
        pts_seconds=np.arange(frames) / 25,
        features={"low": rng.random((2, frames, 128), dtype=np.float32).astype(np.float16)},
    )


def test_equal_data_gives_equal_bytes_and_other_data_others(backend: Backend) -> None:
    assert encode(backend, make_shard(IDS)) == encode(backend, make_shard(IDS))
    assert encode(backend, make_shard(IDS)) != encode(backend, make_shard(IDS[:2]))
    assert encode(backend, make_shard(IDS)) != encode(backend, with_notes(make_shard(IDS)))


def test_both_formats_say_the_same(tmp_path: Path) -> None:
    contents = {open_shard(written(tmp_path, b, make_shard(IDS)), b).index.content for b in BACKENDS}
    assert contents == {make_shard(IDS).index.content}


def test_hdf5_as_h5py_sees_it(tmp_path: Path) -> None:
    data = make_shard(IDS, views=2)
    with h5py.File(written(tmp_path, "h5", data)) as file:
        assert [text.decode() for text in file["video_id"]] == list(IDS)
        assert file["offsets"].dtype == np.int64
        np.testing.assert_array_equal(file["offsets"], data.offsets)
        np.testing.assert_array_equal(file["pts_seconds"], data.pts_seconds)
        for column, level in enumerate(LEVELS):
            assert file[level].chunks is None
            assert file[level].dtype == np.float16
            np.testing.assert_array_equal(file[level], data.features[level])
            for row in range(len(IDS)):
                span = file[level][1, data.offsets[row] : data.offsets[row + 1]]
                assert file["checksum"][row, column, 1] == checksum(span)


def test_zarr_as_the_zarr_library_sees_it(tmp_path: Path) -> None:
    data = make_shard(IDS, views=2)
    group = zarr.open_group(LocalStore(written(tmp_path, "zarr", data)), mode="r")
    assert group["video_id"][...].tolist() == list(IDS)
    np.testing.assert_array_equal(group["offsets"][...], data.offsets)
    np.testing.assert_array_equal(group["pts_seconds"][...], data.pts_seconds)
    np.testing.assert_array_equal(group["checksum"][...], data.index.checksums)
    for level in LEVELS:
        assert group[level].metadata.zarr_format == 3
        np.testing.assert_array_equal(group[level][...], data.features[level])


def test_all_zero_features_are_stored_and_not_left_out(tmp_path: Path) -> None:
    data = dataclasses.replace(
        make_shard(IDS), features={level: np.zeros_like(a) for level, a in make_shard(IDS).features.items()}
    )
    path = written(tmp_path, "zarr", data)
    assert (path / "high/c/0/0/0").stat().st_size > data.features["high"].nbytes
    (path / "high/c/0/0/0").unlink()
    with pytest.raises(DamageError):
        open_shard(path, "zarr")


def spoil(data: ShardData, level: str, where: tuple[int, int, int], value: float) -> dict[str, Any]:
    spoiled = {name: array.copy() for name, array in data.features.items()}
    spoiled[level][where] = value
    return {"features": spoiled}


WRONG: dict[str, tuple[Callable[[ShardData], dict[str, Any]], str]] = {
    "NaN": (lambda d: spoil(d, "mid", (0, int(d.offsets[1]), 3), np.nan), "'Läufer/ü': features of level mid"),
    "infinity": (lambda d: spoil(d, "low", (0, 0, 0), np.inf), "are not finite"),
    "an id twice": (lambda _: {"video_ids": ("a", "a", "b")}, "no id twice"),
    "no videos": (lambda d: {"video_ids": (), "offsets": d.offsets[:1]}, "there must be one"),
    "an unsafe id": (lambda _: {"video_ids": ("a", "../b", "c")}, r"\.\./b"),
    "too few offsets": (lambda d: {"offsets": d.offsets[:-1]}, "offsets is int64"),
    "a video without frames": (lambda d: {"offsets": np.array([0, 0, 5, d.offsets[-1]])}, "without frames"),
    "float offsets": (lambda d: {"offsets": d.offsets.astype(float)}, "offsets is float64"),
    "too few times": (lambda d: {"pts_seconds": d.pts_seconds[:-1]}, "pts_seconds is float64"),
    "a time that is NaN": (lambda d: {"pts_seconds": np.full_like(d.pts_seconds, np.nan)}, "not finite and ascending"),
    "times that fall": (lambda d: {"pts_seconds": d.pts_seconds[::-1].copy()}, "not finite and ascending"),
    "float32": (lambda d: {"features": {k: v.astype(np.float32) for k, v in d.features.items()}}, "is float32"),
    "an unknown level": (lambda d: {"features": {**d.features, "top": d.features["mid"]}}, "'top'"),
    "views that differ": (lambda d: {"features": {**d.features, "low": np.repeat(d.features["low"], 2, 0)}}, "one V"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_a_shard_is_refused_before_it_is_written(case: str) -> None:
    change, words = WRONG[case]
    data = make_shard(IDS)
    with pytest.raises(CacheError, match=words):
        dataclasses.replace(data, **change(data))


def test_a_changed_feature_names_its_video(tmp_path: Path, backend: Backend) -> None:
    data = make_shard(IDS)
    path = written(tmp_path, backend, data)
    file = path if backend == "h5" else path / "mid/c/0/0/0"
    needle = data.features["mid"][0, data.offsets[1]].tobytes()
    content = bytearray(file.read_bytes())
    content[content.index(needle)] ^= 1
    file.write_bytes(content)
    reader = open_shard(path, backend)
    assert damaged_videos(reader) == ["Läufer/ü"]
    span = features(reader, 1, "mid", 0, 0, int(data.offsets[2] - data.offsets[1]))
    with pytest.raises(DamageError, match=r"'Läufer/ü': level mid, view 0 .*cache verify"):
        check_span(reader, 1, "mid", 0, span)


def test_a_shard_that_shrinks_while_it_is_open_is_an_error(tmp_path: Path, backend: Backend) -> None:
    path = written(tmp_path, backend, make_shard(IDS))
    reader = open_shard(path, backend)
    file = path if backend == "h5" else path / "low/c/0/0/0"
    os.truncate(file, 100)
    with pytest.raises(DamageError, match="ends early"):
        features(reader, 0, "low", 0, 0, 1)


def test_the_writer_writes_in_another_process_and_outlives_errors(tmp_path: Path, backend: Backend) -> None:
    data = make_shard(IDS)
    writer = ShardWriter()
    with pytest.raises(FileNotFoundError, match="missing"):
        writer.write(tmp_path / "missing/deeper/x", "h5", data)
    first = writer.write(tmp_path / "a", backend, data)
    assert first == writer.write(tmp_path / "b", backend, data) == hash_files(tmp_path / "a")
    with pytest.raises(FileExistsError):
        writer.write(tmp_path / "a", backend, data)
    assert writer._child is not None
    writer._child.kill()
    writer._child.wait()
    assert writer.write(tmp_path / "c", backend, data) == first
    writer.close()


def test_the_hash_covers_names_and_places(tmp_path: Path) -> None:
    write_shard(tmp_path / "a", "zarr", make_shard(IDS))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert hash_files(tmp_path / "a") == hash_files(tmp_path / "b")
    (tmp_path / "b/low/c/0/0/0").rename(tmp_path / "b/low/c/0/0/1")
    assert hash_files(tmp_path / "a") != hash_files(tmp_path / "b")
