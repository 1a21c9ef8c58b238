"""Zarr shards made to deceive: with the right hashes in the ledger, they lead outside or declare absurdities.

Each is refused with an error that names the file, and nothing outside of the cache is read or written.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from google_crc32c import value as crc32c
from zarr.storage import LocalStore

from tests.helpers.cache import filled_cache
from tests.helpers.untrusted import TERA, Watch, assert_refused, smuggle


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
