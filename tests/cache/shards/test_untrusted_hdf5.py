"""HDF5 shards made to deceive: with the right hashes in the ledger, they lead outside or declare absurdities.

Each is refused with an error that names the file, and nothing outside of the cache is read or written.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from cache.common.errors import DamageError
from cache.convert import convert
from cache.shards.hdf5 import encode
from cache.store import FeatureCache
from cache.verify import verify
from tests.helpers.cache import filled_cache, make_fingerprint
from tests.helpers.untrusted import TERA, Watch, assert_refused, shard_data, smuggle, sql


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


@pytest.mark.parametrize("notes", ["x", "[]", "[" * 100_000, "1" * 5000, '{"environment": "[1]"}'])
def test_notes_that_are_no_notes_are_damage_and_nothing_is_adopted(tmp_path: Path, notes: str) -> None:
    """Only what reads the notes finds it: whole shards with features stay readable."""
    path = filled_cache(tmp_path / "c", 4).path
    data = replace(shard_data(), notes=notes)
    shard = smuggle(path, lambda shard: shard.write_bytes(encode(data)[""]))
    sql(path, "UPDATE shards SET content = ?", data.index.content)
    assert ["its notes are not those of this program" in finding.what for finding in verify(path)] == [True]
    with FeatureCache.open(path) as cache, pytest.raises(DamageError, match=shard.name):
        convert(cache, tmp_path / "target", "zarr")
    sql(path, "UPDATE videos SET status = 'pending', shard = NULL, position = NULL, num_frames = 0")
    sql(path, "DELETE FROM shards")
    with FeatureCache.open_for_extraction(path, make_fingerprint()) as cache:
        assert cache.video_ids == ()
