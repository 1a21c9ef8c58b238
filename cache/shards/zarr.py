"""A shard as one Zarr v3 group: each array sharded, with a crc32c behind every chunk.

The zarr library writes the group. Everything is stored uncompressed, so once the metadata has been compared with what
we write, chunks are read with plain positioned reads (Zarr's "sharding_indexed"): without a thread, an event loop, or
room for whatever an array declares.
"""

import json
import stat
import struct
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from cache.common.errors import CacheError
from cache.common.files import PositionedFile, plain_files
from cache.fingerprint import LEVELS, Level
from cache.shards.protocol import MAX_INDEX_BYTES, ShardData, ShardIndex

_FORMAT = "mrrn-shard-1"
_INDEX = {"video_id": "string", "offsets": "int64", "pts_seconds": "float64", "checksum": "uint64"}
_ATTRIBUTES = {"format", "content", "notes"}
_CHUNK_FRAMES = 256
_CRC_BYTES = 4
_PLACE = struct.Struct("<QQI")
"""At the end of a file with one chunk: where that begins, its bytes, and a crc32c of these two."""


def encode(data: ShardData) -> dict[str, bytes]:
    """The group's files by their path in it; equal data gives equal bytes."""
    index = data.index
    files: dict[str, Buffer] = {}
    group = zarr.create_group(
        MemoryStore(files), attributes={"format": _FORMAT, "content": index.content, "notes": index.notes}
    )
    arrays: dict[Any, NDArray[Any]] = {
        "video_id": np.array(index.video_ids, dtype=object),
        "offsets": index.offsets,
        "pts_seconds": index.pts_seconds,
        "checksum": index.checksums,
        **data.features,
    }
    for name, array in arrays.items():
        chunk, shard = _grid(array.shape) if name in LEVELS else (array.shape, array.shape)
        created = group.create_array(
            name,
            shape=array.shape,
            dtype="str" if name == "video_id" else array.dtype.name,
            chunks=chunk,
            shards=shard,
            compressors=Crc32cCodec(),
            # All-zero features are data too: a missing chunk always means damage.
            config={"write_empty_chunks": True},
        )
        created[...] = array
    return {name: content.to_bytes() for name, content in files.items()}


def _grid(shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of a chunk and of a file of a `[V, F, C]` array: one file per view, chunks of whole frames."""
    _, num_frames, channels = shape
    frames = min(_CHUNK_FRAMES, num_frames)
    return (1, frames, channels), (1, -(-num_frames // frames) * frames, channels)


class ZarrShard:
    """ShardReader of one group."""

    def __init__(self, path: Path) -> None:
        """Check the structure and read the index. What it raises for another folder, `open_shard` translates."""
        self.path = path
        attributes = _check_structure(path)
        if attributes["format"] != _FORMAT:
            raise CacheError(f"its format is not {_FORMAT}; another version of this program may have written it")
        self.index = _read_index(path, str(attributes["notes"]))
        self.index.check()
        self.widths: dict[Level, int] = {}
        self._chunks = {level: self._open_level(level) for level in self.index.levels}
        if self.index.content != attributes["content"]:
            raise CacheError("its index does not agree with its own hash")

    def _open_level(self, level: Level) -> "list[_ViewFile]":
        declared = _read_json(self.path / level / "zarr.json")["shape"]
        views, frames = self.index.num_views, self.index.num_frames
        if len(declared) != 3 or declared[:2] != [views, frames]:
            raise CacheError(f"{level} is {declared}; expected [{views}, {frames}, channels]")
        self.widths[level] = declared[2]
        chunk, shard = _grid((views, frames, declared[2]))
        return [_ViewFile(self.path / level / "c" / str(view) / "0" / "0", chunk, shard) for view in range(views)]

    def read_into(self, level: Level, view: int, start: int, out_FC: NDArray[np.float16]) -> None:
        assert out_FC.flags.c_contiguous
        assert 0 <= start <= start + len(out_FC) <= self.index.num_frames
        self._chunks[level][view].read_into(start, out_FC)


class _ViewFile:
    """The file that holds one view of one level: chunks, each with its crc32c, then their places."""

    def __init__(self, path: Path, chunk: tuple[int, ...], shard: tuple[int, ...]) -> None:
        self.chunk_frames = chunk[1]
        self._file = PositionedFile(path)
        chunk_bytes = chunk[1] * chunk[2] * 2 + _CRC_BYTES
        count = shard[1] // chunk[1]
        file_bytes = self._file.num_bytes
        index_start = file_bytes - 16 * count - _CRC_BYTES
        if index_start != count * chunk_bytes:
            raise CacheError(f"{path} has {file_bytes} bytes; expected {count * (chunk_bytes + 16) + _CRC_BYTES}")
        places = np.empty((count, 2), dtype="<u8")
        self._file.read_into(places.data.cast("B"), index_start)
        if (places[:, 1] != chunk_bytes).any() or (places[:, 0] > index_start - chunk_bytes).any():
            raise CacheError(f"{path}: the places of its chunks are not those that were written")
        self._starts: list[int] = places[:, 0].tolist()

    def read_into(self, start: int, out_FC: NDArray[np.float16]) -> None:
        row_bytes = out_FC.shape[1] * out_FC.itemsize
        done = 0
        while done < len(out_FC):
            chunk, row = divmod(start + done, self.chunk_frames)
            rows = min(self.chunk_frames - row, len(out_FC) - done)
            wanted = out_FC[done : done + rows].data.cast("B")
            self._file.read_into(wanted, self._starts[chunk] + row * row_bytes)
            done += rows


def _read_index(path: Path, notes: str) -> ShardIndex:
    arrays = {name: _read_array(path / name, dtype) for name, dtype in _INDEX.items()}
    return ShardIndex(
        video_ids=tuple(arrays["video_id"].tolist()),
        offsets=arrays["offsets"],
        pts_seconds=arrays["pts_seconds"],
        checksums=arrays["checksum"],
        levels=tuple(level for level in LEVELS if (path / level).is_dir()),
        notes=notes,
    )


def _read_array(path: Path, dtype: str) -> NDArray[Any]:
    """An array of the index, whose metadata was checked: one file with one chunk, as "sharding_indexed" lays it out."""
    shape = _read_json(path / "zarr.json")["shape"]
    file = PositionedFile(path.joinpath("c", *("0" for _ in shape)))
    if not _PLACE.size < file.num_bytes <= MAX_INDEX_BYTES:
        raise CacheError(f"{file.path} has {file.num_bytes} bytes; no shard has that")
    content = bytearray(file.num_bytes)
    file.read_into(memoryview(content), 0)
    start, num_bytes, _ = _PLACE.unpack_from(content, len(content) - _PLACE.size)
    if (start, num_bytes) != (0, len(content) - _PLACE.size):
        raise CacheError(f"{file.path}: the place of its chunk is not the one that was written")
    chunk = memoryview(content)[: num_bytes - _CRC_BYTES]
    if dtype != "string":
        return np.frombuffer(chunk, dtype=np.dtype(dtype).newbyteorder("<")).reshape(shape)
    return np.array(_texts(chunk), dtype=object).reshape(shape)


def _texts(chunk: memoryview) -> list[str]:
    """The texts of a chunk ("vlen-utf8"): their number, then each one's length in bytes and the bytes."""
    texts, position = [], 4
    while position < len(chunk):
        end = position + 4 + int.from_bytes(chunk[position : position + 4], "little")
        texts.append(str(chunk[position + 4 : end], "utf-8"))
        position = end
    if position != len(chunk) or len(texts) != int.from_bytes(chunk[:4], "little"):
        raise CacheError(f"an array of texts holds {len(texts)}; that is not what its length or its number says")
    return texts


def _check_structure(path: Path) -> dict[str, Any]:
    """Refuse whatever a group of ours never has: links, other arrays, other codecs. Returns the group's attributes."""
    if not stat.S_ISDIR(path.lstat().st_mode):
        raise CacheError("it is not a folder")
    for file in plain_files(path):
        if not stat.S_ISREG(file.lstat().st_mode):
            raise CacheError(f"{file.relative_to(path)} is neither a file nor a folder")
    names = {entry.name for entry in path.iterdir()} - {"zarr.json"}
    if names - set(LEVELS) != _INDEX.keys():
        raise CacheError(f"it holds {sorted(names)}; expected {sorted(_INDEX)} and levels")
    group = _read_json(path / "zarr.json")
    attributes = group.pop("attributes", {})
    if group != {"zarr_format": 3, "node_type": "group"} or attributes.keys() != _ATTRIBUTES:
        raise CacheError("zarr.json does not describe a shard")
    for name in names:
        found = _read_json(path / name / "zarr.json")
        shape = found["shape"]
        if not isinstance(shape, list) or not all(isinstance(n, int) and n > 0 for n in shape):
            raise CacheError(f"{name} declares the shape {shape!r}")
        expected = _metadata(shape, _INDEX.get(name, "float16"))
        for field in expected.keys() | found.keys():
            if field not in found or found[field] != expected.get(field):
                raise CacheError(f"{name} says {field} = {found.get(field)!r}; expected {expected.get(field)!r}")
    return dict(attributes)


def _read_json(path: Path) -> Any:
    num_bytes = path.stat().st_size
    if num_bytes > MAX_INDEX_BYTES:
        raise CacheError(f"{path} has {num_bytes} bytes, more than the metadata of any shard")
    return json.loads(path.read_bytes())


def _metadata(shape: list[int], dtype: str) -> dict[str, Any]:
    """The metadata of an array that we write (Zarr v3 core, and its sharding codec)."""
    chunk, shard = _grid(tuple(shape)) if dtype == "float16" else (tuple(shape), tuple(shape))
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    stored = {"name": "vlen-utf8", "configuration": {}} if dtype == "string" else little
    sharding = {
        "chunk_shape": list(chunk),
        "codecs": [stored, {"name": "crc32c"}],
        "index_codecs": [little, {"name": "crc32c"}],
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "attributes": {},
        "storage_transformers": [],
        "shape": shape,
        "data_type": dtype,
        "fill_value": "" if dtype == "string" else 0,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shard)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
    }
