"""Caches made to deceive: shards, with the right hashes in the ledger, that lead elsewhere or declare absurdities.

Each is refused with an error that names the file, and nothing outside of the cache is read or written.
"""

import contextlib
import ctypes
import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from google_crc32c import value as crc32c
from zarr.storage import LocalStore

from cache.common.errors import CacheError, MrrnError
from cache.repair import repair
from cache.shards.writer import hash_files
from cache.store import FeatureCache
from cache.verify import verify
from tests.helpers.cache import filled_cache, make_fingerprint, make_shard

TERA = 10**12


class Watch:
    """Whether anybody opens, reads or changes what is in a folder; asked of the kernel (Linux inotify)."""

    def __init__(self, folder: Path) -> None:
        access, modify, opened = 1, 2, 32
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK)
        for path in (folder, *folder.rglob("*")):
            assert libc.inotify_add_watch(self._descriptor, os.fsencode(path), access | modify | opened) >= 0

    def touched(self) -> bool:
        """Whether it happened since the last question."""
        with contextlib.suppress(BlockingIOError):
            return bool(os.read(self._descriptor, 1 << 16))
        return False

    def close(self) -> None:
        os.close(self._descriptor)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that is none of the cache's business, with the very arrays that the shard should have."""
    folder = tmp_path / "outside"
    folder.mkdir()
    data = shard_data()
    with h5py.File(folder / "secret.h5", "w") as file:
        for name, array in {**data.features, "offsets": data.offsets}.items():
            file[name] = array
    (folder / "secret.bin").write_bytes(data.features["low"].tobytes())
    return folder


@pytest.fixture
def watch(outside: Path) -> Iterator[Watch]:
    if not sys.platform.startswith("linux"):
        pytest.skip("asks the kernel who opens files, which is Linux's inotify")
    watch = Watch(outside)
    yield watch
    watch.close()


def shard_data() -> Any:
    return make_shard([f"c{i % 2}/v{i:05d}" for i in (0, 2, 1, 3)])


def sql(cache: Path, statement: str, *values: Any) -> None:
    with contextlib.closing(sqlite3.connect(cache / "ledger.sqlite")) as connection, connection:
        connection.execute(statement, values)


def smuggle(cache: Path, craft: Callable[[Path], object]) -> Path:
    """Change the cache's only shard, and the ledger and its name so that they agree with its new bytes."""
    (shard,) = (cache / "shards").iterdir()
    craft(shard)
    if is_hollow(shard):
        return shard
    try:
        written = hash_files(shard)
    except OSError:
        # What is no plain file has no hash: nobody could write one into the ledger.
        return shard
    renamed = shard.rename(shard.with_name(f"000000-{written.digest[:16]}{shard.suffix}"))
    sql(cache, "UPDATE shards SET name = ?, digest = ?, num_bytes = ?", renamed.name, written.digest, written.num_bytes)
    return renamed


def is_hollow(shard: Path) -> bool:
    """Whether it has terabytes of nothing, which nobody would want to hash in a test."""
    files = [] if shard.is_symlink() else [shard, *shard.rglob("*")]
    return any(file.is_file() and file.stat().st_size > 1 << 30 for file in files)


def assert_refused(path: Path, shard: Path) -> None:
    """By every way of reading; each error names the shard."""
    with FeatureCache.open(path) as cache:
        for read in (
            lambda: cache.features(cache.video_ids[0], "low"),
            lambda: cache.pts_seconds(cache.video_ids[0]),
        ):
            with pytest.raises(CacheError) as caught:
                read()
            assert str(shard) in str(caught.value)
    if is_hollow(shard):
        return
    assert [shard.name in finding.what for finding in verify(path)] == [True]
    # As something that the ledger does not know, it is not adopted either.
    sql(path, "UPDATE videos SET status = 'pending', shard = NULL, position = NULL, num_frames = 0")
    sql(path, "DELETE FROM shards")
    with FeatureCache.open_for_extraction(path, make_fingerprint()) as cache:
        assert cache.video_ids == ()


# -- HDF5 -------------------------------------------------------------------------------------------------------------


def h5(change: Callable[[h5py.File, Path], object]) -> Callable[[Path, Path], None]:
    """Change a shard with raw h5py, given the file and the folder outside."""

    def craft(shard: Path, outside: Path) -> None:
        with h5py.File(shard, "r+", libver=("v110", "v110")) as file:
            change(file, outside)

    return craft


def again(name: str, **how: Any) -> Callable[[Path, Path], None]:
    """The same array in the same shape, stored in another way."""

    def change(file: h5py.File, _: Path) -> None:
        array = file[name][...]
        del file[name]
        file.create_dataset(name, data=array, **how)

    return h5(change)


def other(name: str, make: Callable[[h5py.File, Path], object]) -> Callable[[Path, Path], None]:
    """Something else where an array was; `make` gets the file and the folder outside."""

    def change(file: h5py.File, outside: Path) -> None:
        del file[name]
        file[name] = make(file, outside)

    return h5(change)


def retyped(name: str, dtype: Any) -> Callable[[Path, Path], None]:
    def change(file: h5py.File, _: Path) -> None:
        array = file[name][...]
        del file[name]
        file.create_dataset(name, data=array.astype(dtype))

    return h5(change)


def external_storage(file: h5py.File, outside: Path) -> None:
    shape = file["low"].shape
    del file["low"]
    file.create_dataset("low", shape, "<f2", external=[(str(outside / "secret.bin"), 0, h5py.h5f.UNLIMITED)])


def virtual(file: h5py.File, outside: Path) -> None:
    layout = h5py.VirtualLayout(file["low"].shape, "<f2")
    layout[...] = h5py.VirtualSource(outside / "secret.h5", "low", file["low"].shape)
    del file["low"]
    file.create_virtual_dataset("low", layout)


def foreign_filter(file: h5py.File, _: Path) -> None:
    array = file["low"][...]
    del file["low"]
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_chunk(array.shape)
    settings.set_filter(40_000, h5py.h5z.FLAG_OPTIONAL, (1, 2))
    low = h5py.h5d.create(file.id, b"low", h5py.h5t.IEEE_F16LE, h5py.h5s.create_simple(array.shape), settings)
    low.write_direct_chunk((0, 0, 0), array.tobytes())


def declared(name: str, shape: tuple[int, ...], dtype: Any, *, early: bool = False) -> Callable[[Path, Path], None]:
    """An array that is declared and never written; `early` reserves its place, as a hole in the file."""

    def change(file: h5py.File, _: Path) -> None:
        del file[name]
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        if early:
            settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        kind = h5py.h5t.py_create(np.dtype(dtype), logical=True)
        h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(shape), settings)

    return h5(change)


def cut_after(craft: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
    def crafted(shard: Path, outside: Path) -> None:
        craft(shard, outside)
        os.truncate(shard, 1 << 20)

    return crafted


def narrow_integers(file: h5py.File, _: Path) -> None:
    array = file["offsets"][...]
    del file["offsets"]
    kind = h5py.h5t.STD_I64LE.copy()
    kind.set_precision(60)
    h5py.h5d.create(file.id, b"offsets", kind, h5py.h5s.create_simple(array.shape)).write(
        h5py.h5s.ALL, h5py.h5s.ALL, array
    )


def reattributed(name: str, value: Any, **how: Any) -> Callable[[Path, Path], None]:
    return h5(lambda file, _: file.attrs.create(name, value, **how))


HDF5: dict[str, Callable[[Path, Path], None]] = {
    "features behind an external link": other("low", lambda _, o: h5py.ExternalLink(o / "secret.h5", "/low")),
    "offsets behind an external link": other("offsets", lambda _, o: h5py.ExternalLink(o / "secret.h5", "/offsets")),
    "a soft link to another array": other("low", lambda *_: h5py.SoftLink("/mid")),
    "a soft link to nothing": other("offsets", lambda *_: h5py.SoftLink("/nothing")),
    "features in another file": h5(external_storage),
    "features put together from another file": h5(virtual),
    "chunks": again("low", chunks=True),
    "chunks that are compressed": again("low", compression="gzip"),
    "chunks with checksums": again("offsets", chunks=True, fletcher32=True),
    "chunks of a filter that the library has": again("mid", compression="lzf", shuffle=True),
    "chunks of a filter that nobody knows": h5(foreign_filter),
    "an array that can grow": again("pts_seconds", maxshape=(None,)),
    "an array in its own header": other("notes", lambda file, _: _compact(file)),
    "2 TB of features": declared("low", (1, TERA // 128, 128), "<f2"),
    "2 TB of features, cut off": cut_after(declared("low", (1, TERA // 128, 128), "<f2", early=True)),
    "2 EB of features": declared("low", (1, 1 << 52, 128), "<f2"),
    "2 TB of offsets": declared("offsets", (TERA // 4,), "<i8"),
    "2 TB of frame times in a hole": declared("pts_seconds", (TERA // 4,), "<f8", early=True),
    "2 TB of ids in a hole": declared("video_id", (1000,), "S2000000000", early=True),
    "2 TB of checksums in a hole": declared("checksum", (4, 3, TERA // 50), "<u8", early=True),
    "no features": declared("low", (0, 0, 128), "<f2"),
    "a single number": other("offsets", lambda *_: 7),
    "nothing in a space of no size": other("pts_seconds", lambda *_: h5py.Empty("<f8")),
    "features of float32": retyped("low", "<f4"),
    "features of big-endian float16": retyped("low", ">f2"),
    "features of integers as wide": retyped("low", "<i2"),
    "features of complex numbers": retyped("low", "<c8"),
    "offsets of int32": retyped("offsets", "<i4"),
    "offsets of unsigned integers": retyped("offsets", "<u8"),
    "offsets of 60 bits": h5(narrow_integers),
    "ids of any length": retyped("video_id", h5py.string_dtype()),
    "notes of any length": other("notes", lambda *_: "{}"),
    "lists in place of offsets": other("offsets", lambda *_: _lists()),
    "references in place of frame times": other("pts_seconds", lambda file, _: np.array([file.ref] * 4)),
    "pairs in place of checksums": other("checksum", lambda *_: np.zeros(9, dtype=[("a", "<u4"), ("b", "<u4")])),
    "names for numbers in place of offsets": other(
        "offsets", lambda *_: np.zeros(5, dtype=h5py.enum_dtype({"a": 0}, basetype="<i8"))
    ),
    "a group in place of an array": h5(lambda file, _: (file.__delitem__("low"), file.create_group("low"))),
    "a type in place of an array": other("low", lambda *_: np.dtype("<f2")),
    "one array under two names": other("low", lambda file, _: file["mid"]),
    "an array too many": h5(lambda file, _: file.create_dataset("more", data=[1])),
    "a link too many": h5(lambda file, o: file.__setitem__("more", h5py.ExternalLink(o / "secret.h5", "/low"))),
    "a hash of any length": reattributed("content", "0" * 32, dtype=h5py.string_dtype()),
    "a very long hash": reattributed("content", np.bytes_(b"0" * 60_000)),
    "many hashes": reattributed("content", np.array([b"0" * 32] * 9)),
    "a number for a hash": reattributed("content", 7),
    "another format": reattributed("format", np.bytes_(b"mrrn-shard-2")),
}


def _compact(file: h5py.File) -> h5py.Dataset:
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_layout(h5py.h5d.COMPACT)
    kind, space = h5py.h5t.py_create(np.dtype("S2")), h5py.h5s.create(h5py.h5s.SCALAR)
    return h5py.Dataset(h5py.h5d.create(file.id, None, kind, space, settings))


def _lists() -> np.ndarray:
    lists = np.empty(5, dtype=h5py.vlen_dtype("<i8"))
    lists[:] = [np.arange(i) for i in range(5)]
    return lists


@pytest.mark.parametrize("kind", HDF5)
def test_a_deceiving_hdf5_shard_is_refused(tmp_path: Path, outside: Path, watch: Watch, kind: str) -> None:
    path = filled_cache(tmp_path / "c", 4).path
    shard = smuggle(path, lambda shard: HDF5[kind](shard, outside))
    watch.touched()
    assert_refused(path, shard)
    assert not watch.touched()


@pytest.mark.parametrize("kind", [kind for kind in HDF5 if "another file" in kind or "external link" in kind])
def test_a_reader_that_trusts_would_have_gone_outside(tmp_path: Path, outside: Path, watch: Watch, kind: str) -> None:
    """What the test above watches for does happen when raw h5py reads the same shards."""
    path = filled_cache(tmp_path / "c", 4).path
    shard = smuggle(path, lambda shard: HDF5[kind](shard, outside))
    watch.touched()
    with h5py.File(shard) as file:
        file["offsets"][...], file["low"][...]
    assert watch.touched()


# -- Zarr -------------------------------------------------------------------------------------------------------------


def said(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path, Path], None]:
    """Change what the metadata of an array ("" for the group) say."""

    def craft(shard: Path, _: Path) -> None:
        file = shard / name / "zarr.json"
        value = json.loads(file.read_bytes())
        change(value)
        file.write_text(json.dumps(value))

    return craft


def sharding(value: dict[str, Any]) -> dict[str, Any]:
    return value["codecs"][0]["configuration"]


def stored(name: str, **how: Any) -> Callable[[Path, Path], None]:
    """The same array, stored by the zarr library in another way."""

    def craft(shard: Path, _: Path) -> None:
        group = zarr.open_group(LocalStore(shard), mode="r+")
        array = group[name][...]
        settings = {"shape": array.shape, "dtype": array.dtype, "chunks": array.shape, **how}
        group.create_array(name, overwrite=True, **settings)[...] = array

    return craft


def link(name: str) -> Callable[[Path, Path], None]:
    """A part of the shard moved outside, and a link in its place."""

    def craft(shard: Path, outside: Path) -> None:
        shutil.move(shard / name, outside / "moved")
        (shard / name).symlink_to(outside / "moved")

    return craft


def without(name: str) -> Callable[[Path, Path], None]:
    def craft(shard: Path, _: Path) -> None:
        shutil.rmtree(shard / name) if (shard / name).is_dir() else (shard / name).unlink()

    return craft


def put(name: str, content: bytes) -> Callable[[Path, Path], None]:
    return lambda shard, _: (shard / name).write_bytes(content)


def pipe(name: str) -> Callable[[Path, Path], None]:
    def craft(shard: Path, _: Path) -> None:
        (shard / name).unlink()
        os.mkfifo(shard / name)

    return craft


def hole(name: str) -> Callable[[Path, Path], None]:
    return lambda shard, _: os.truncate(shard / name, TERA)


def one_chunk(name: str, content: bytes) -> Callable[[Path, Path], None]:
    """An array's only chunk, with the right checksums and its place behind it, as the format has them."""

    def craft(shard: Path, _: Path) -> None:
        chunk = content + crc32c(content).to_bytes(4, "little")
        index = (0).to_bytes(8, "little") + len(chunk).to_bytes(8, "little")
        file = next(file for file in (shard / name / "c").rglob("*") if file.is_file())
        file.write_bytes(chunk + index + crc32c(index).to_bytes(4, "little"))

    return craft


def places(name: str, change: Callable[[np.ndarray], object]) -> Callable[[Path, Path], None]:
    """Change where an array's file says that its chunks are, with the right checksum over that."""

    def craft(shard: Path, _: Path) -> None:
        file = next(file for file in (shard / name / "c").rglob("*") if file.is_file())
        content = file.read_bytes()
        index = np.frombuffer(content[-20:-4], dtype="<u8").copy()
        change(index)
        file.write_bytes(content[:-20] + index.tobytes() + crc32c(index.tobytes()).to_bytes(4, "little"))

    return craft


def all_of(*crafts: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
    def craft(shard: Path, outside: Path) -> None:
        for each in crafts:
            each(shard, outside)

    return craft


def shaped(name: str, *shape: Any) -> Callable[[Path, Path], None]:
    """Another shape, with chunks to match, so that nothing else in the metadata is odd."""

    def change(value: dict[str, Any]) -> None:
        value["shape"] = list(shape)
        chunk = list(shape) if len(shape) == 1 or name == "checksum" else [1, 256, *shape[2:]]
        outer = chunk if chunk == list(shape) else [1, -(-shape[1] // 256) * 256, *shape[2:]]
        sharding(value)["chunk_shape"] = chunk
        value["chunk_grid"]["configuration"]["chunk_shape"] = outer

    return said(name, change)


GZIP = {"name": "gzip", "configuration": {"level": 5}}

ZARR: dict[str, Callable[[Path, Path], None]] = {
    "features compressed": stored("low", shards=None, compressors=zarr.codecs.GzipCodec()),
    "offsets compressed": stored("offsets", shards=None, compressors=zarr.codecs.ZstdCodec()),
    "features in bare chunks": stored("low", compressors=None),
    "big-endian features": stored("low", serializer=zarr.codecs.BytesCodec(endian="big"), compressors=None),
    "transposed features": stored("low", filters=zarr.codecs.TransposeCodec(order=(2, 1, 0)), compressors=None),
    "a codec that nobody knows": said("low", lambda v: v.update(codecs=[{"name": "os.system", "configuration": {}}])),
    "a codec within the chunks": said("low", lambda v: sharding(v)["codecs"].append(GZIP)),
    "a codec of the places": said("mid", lambda v: sharding(v)["index_codecs"].append(GZIP)),
    "places at the start": said("mid", lambda v: sharding(v).update(index_location="start")),
    "no checksums in the chunks": said("high", lambda v: sharding(v)["codecs"].pop()),
    "a codec that decodes by pickle": said("video_id", lambda v: sharding(v)["codecs"].insert(0, {"name": "pickle"})),
    "features of float32": said("low", lambda v: v.update(data_type="float32")),
    "offsets of uint64": said("offsets", lambda v: v.update(data_type="uint64")),
    "offsets of text": said("offsets", lambda v: v.update(data_type="string")),
    "ids of bytes": said("video_id", lambda v: v.update(data_type="variable_length_bytes")),
    "ids of structures": said("video_id", lambda v: v.update(data_type={"name": "structured", "configuration": {}})),
    "another fill value": said("low", lambda v: v.update(fill_value=1.5)),
    "a fill value that is not finite": said("pts_seconds", lambda v: v.update(fill_value="NaN")),
    "a storage transformer": said("low", lambda v: v.update(storage_transformers=[{"name": "x"}])),
    "other names of chunks": said(
        "low", lambda v: v.update(chunk_key_encoding={"name": "v2", "configuration": {"separator": "../"}})
    ),
    "an unknown field": said("low", lambda v: v.update(must_understand=True)),
    "attributes of an array": said("low", lambda v: v.update(attributes={"x": 1})),
    "metadata of all arrays in the group": said("", lambda v: v.update(consolidated_metadata={"metadata": {}})),
    "an attribute too many": said("", lambda v: v["attributes"].update(x=1)),
    "notes that are no text": said("", lambda v: v["attributes"].update(notes={"a": [1]})),
    "another format": said("", lambda v: v["attributes"].update(format="mrrn-shard-2")),
    "an array in place of the group": said("", lambda v: v.update(node_type="array")),
    "metadata that are no JSON": put("low/zarr.json", b"import os"),
    "metadata that are no object": put("offsets/zarr.json", b"[]"),
    "metadata of a million brackets": put("low/zarr.json", b"[" * 1_000_000),
    "metadata with a number of a million digits": put("low/zarr.json", b'{"shape": [%s]}' % (b"9" * 1_000_000)),
    "2 TB of metadata": hole("low/zarr.json"),
    "2 TB of metadata of the group": hole("zarr.json"),
    "chunks that are missing": without("low/c"),
    "an index that is all fill value": without("offsets/c"),
    "checksums that are all fill value": without("checksum/c"),
    "a chunk that its file says is missing": places("low", lambda place: place.fill(2**64 - 1)),
    "an index chunk that its file says is missing": places("offsets", lambda place: place.fill(2**64 - 1)),
    "a chunk behind the end of its file": places("low", lambda place: place.__setitem__(0, 1 << 62)),
    "an index chunk behind the end of its file": places("offsets", lambda place: place.__setitem__(0, 1 << 62)),
    "a chunk of 16 EB": places("low", lambda place: place.__setitem__(1, 2**64 - 2)),
    "an index chunk of 16 EB": places("pts_seconds", lambda place: place.__setitem__(1, 2**64 - 2)),
    "2 TB of features": shaped("low", 1, TERA // 128, 128),
    "2 EB of features": shaped("low", 1, 1 << 52, 128),
    "2 TB of offsets": shaped("offsets", TERA // 4),
    "2 TB of offsets in a hole": all_of(shaped("offsets", TERA // 8), hole("offsets/c/0")),
    "2 TB of features in a hole": all_of(shaped("low", 1, TERA // 256, 128), hole("low/c/0/0/0")),
    "more views than features": shaped("checksum", 4, 3, 1 << 40),
    "ids without end": one_chunk("video_id", b"\xff" * 4 + bytes(8)),
    "an id of 4 GB": one_chunk("video_id", (4).to_bytes(4, "little") + b"\xff" * 4 + b"x" * 64),
    "fewer ids than declared": one_chunk("video_id", (1).to_bytes(4, "little") + (1).to_bytes(4, "little") + b"x"),
    "a negative shape": said("low", lambda v: v.update(shape=[1, -5, 128])),
    "a shape of fractions": said("low", lambda v: v.update(shape=[1.0, 2.5, 128.0])),
    "a shape of no size": said("offsets", lambda v: v.update(shape=[])),
    "features behind a link": link("low"),
    "a chunk behind a link": link("low/c/0/0/0"),
    "offsets behind a link": link("offsets/c/0"),
    "metadata behind a link": link("mid/zarr.json"),
    "the group behind a link": link("zarr.json"),
    "a pipe in place of a chunk": pipe("low/c/0/0/0"),
    "a pipe in place of metadata": pipe("low/zarr.json"),
    "an array too many": lambda shard, _: shutil.copytree(shard / "low", shard / "more"),
    "an array too few": without("offsets"),
    "a file in place of an array": all_of(without("low"), put("low", b"x")),
}


@pytest.mark.parametrize("kind", ZARR)
def test_a_deceiving_zarr_shard_is_refused(tmp_path: Path, outside: Path, watch: Watch, kind: str) -> None:
    path = filled_cache(tmp_path / "c", 4, backend="zarr").path
    shard = smuggle(path, lambda shard: ZARR[kind](shard, outside))
    watch.touched()
    assert_refused(path, shard)
    assert not watch.touched()


# -- around the shards ------------------------------------------------------------------------------------------------


def move_out(path: Path, outside: Path) -> None:
    shutil.move(path, outside / "moved")
    path.symlink_to(outside / "moved")


@pytest.mark.parametrize("name", ["cache.json", "dataset.json", "ledger.sqlite", "shards"])
def test_links_in_place_of_a_caches_own_files_are_not_followed(
    tmp_path: Path, outside: Path, watch: Watch, name: str
) -> None:
    path = filled_cache(tmp_path / "c", 4).path
    move_out(path / name, outside)
    watch.touched()
    with pytest.raises(MrrnError, match=name):
        FeatureCache.open(path)
    assert [name in finding.what for finding in verify(path)] == [True]
    assert not watch.touched()


@pytest.mark.parametrize("backend", ["h5", "zarr"])
def test_a_link_or_pipe_in_place_of_a_shard_is_not_followed(
    tmp_path: Path, outside: Path, watch: Watch, backend: str
) -> None:
    for name, replace in {"a link": lambda shard: shard.symlink_to(outside / "moved"), "a pipe": os.mkfifo}.items():
        path = filled_cache(tmp_path / name, 4, backend=backend).path
        (shard,) = (path / "shards").iterdir()
        shutil.move(shard, outside / "moved")
        replace(shard)
        watch.touched()
        with FeatureCache.open(path) as cache, pytest.raises(CacheError, match=shard.name):
            cache.load("low", cache.video_ids)
        assert_refused(path, shard)
        assert not watch.touched()
        shutil.rmtree(outside / "moved") if backend == "zarr" else (outside / "moved").unlink()


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
def test_sqlite_does_not_write_through_links_beside_the_ledger(
    tmp_path: Path, outside: Path, watch: Watch, suffix: str
) -> None:
    path = filled_cache(tmp_path / "c", 4).path
    (path / f"ledger.sqlite{suffix}").symlink_to(outside / "secret.bin")
    before = (outside / "secret.bin").read_bytes()
    watch.touched()
    with pytest.raises(CacheError, match=f"ledger.sqlite{suffix}"), FeatureCache.open(path) as cache:
        cache.requeue(["done"])
    assert verify(path)
    assert not watch.touched()
    assert (outside / "secret.bin").read_bytes() == before


def test_a_rollback_journal_is_not_played_back(tmp_path: Path) -> None:
    """SQLite would write into the ledger what the journal says, and look for a file that it names."""
    path = filled_cache(tmp_path / "c", 4).path
    journal, before = path / "ledger.sqlite-journal", (path / "ledger.sqlite").read_bytes()
    journal.write_bytes(hot_journal())
    trusting = shutil.copytree(path, tmp_path / "copy") / "ledger.sqlite"
    with pytest.raises(CacheError, match=r"ledger\.sqlite-journal"), FeatureCache.open(path) as cache:
        cache.ledger.counts()
    assert (path / "ledger.sqlite").read_bytes() == before
    assert any("-journal" in line for line in repair(path))
    assert verify(path) == []
    with contextlib.closing(sqlite3.connect(trusting)) as connection, pytest.raises(sqlite3.DatabaseError):
        connection.execute("SELECT count(*) FROM videos")
    assert trusting.stat().st_size < len(before), "the journal would have harmed nobody, and the test shows nothing"


def hot_journal() -> bytes:
    """A journal in SQLite's format that cuts the ledger down to one page."""
    head = bytes.fromhex("d9d505f920a163d7") + b"".join(n.to_bytes(4, "big") for n in (0, 0, 1, 512, 4096))
    return head.ljust(1024, b"\0")


def test_a_link_where_a_file_is_to_be_written_is_not_followed(tmp_path: Path, outside: Path, watch: Watch) -> None:
    cache = filled_cache(tmp_path / "c", 4)
    dataset = cache.dataset
    (cache.path / f".tmp-{os.getpid()}-dataset.json").symlink_to(outside / "secret.bin")
    watch.touched()
    cache.replace_dataset(dataset)
    assert not watch.touched()
    assert FeatureCache.open(cache.path).dataset == dataset


def test_repair_moves_nothing_out_of_the_cache(tmp_path: Path, outside: Path) -> None:
    path = filled_cache(tmp_path / "c", 4).path
    (path / "quarantine").symlink_to(outside)
    shard = smuggle(path, lambda shard: HDF5["chunks"](shard, outside))
    before = sorted(outside.iterdir())
    with pytest.raises(CacheError, match="quarantine"):
        repair(path)
    assert sorted(outside.iterdir()) == before
    assert shard.exists()
