"""A shard as one HDF5 file: contiguous, unfiltered arrays.

h5py lays the file out and, when reading, tells where the arrays lie; the bytes themselves are read with plain
positioned reads. That is several times faster, holds no lock, and works from many threads and after a fork.
"""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from cache.common.errors import CacheError
from cache.common.files import PositionedFile, require_memory
from cache.fingerprint import LEVELS, Level
from cache.shards.protocol import MAX_INDEX_BYTES, ShardData, ShardIndex

_FORMAT = "mrrn-shard-1"
_INDEX = ("video_id", "offsets", "pts_seconds", "checksum", "notes")
_PAGE_BYTES = 4096
_LIBRARY_BYTES = 32 << 20
"""More than HDF5 needs to open a file. Where memory runs out, it crashes, or finds "links that cannot be iterated"."""


def encode(data: ShardData) -> dict[str, bytes]:
    """The file's bytes, under the empty name; equal data gives equal bytes."""
    index = data.index
    settings: dict[str, Any] = {
        "driver": "core",
        "backing_store": False,
        # v110 is the oldest format with checksums over the metadata; the newest would shut older readers out.
        "libver": ("v110", "v110"),
        "alignment_threshold": 16 * _PAGE_BYTES,
        "alignment_interval": _PAGE_BYTES,
    }
    with h5py.File("shard", "w", **settings) as file:
        file.attrs["format"] = np.bytes_(_FORMAT)
        file.attrs["content"] = np.bytes_(index.content)
        ids = [video_id.encode() for video_id in index.video_ids]
        notes = index.notes.encode()
        arrays: dict[Any, NDArray[Any]] = {
            "video_id": np.array(ids, dtype=h5py.string_dtype("utf-8", max(map(len, ids)))),
            "offsets": index.offsets.astype("<i8"),
            "pts_seconds": index.pts_seconds.astype("<f8"),
            "checksum": index.checksums.astype("<u8"),
            "notes": np.array(notes, dtype=h5py.string_dtype("utf-8", len(notes))),
            **data.features,
        }
        for name, array in arrays.items():
            file.create_dataset(name, data=array)
        file.flush()
        return {"": file.id.get_file_image()}


class Hdf5Shard:
    """ShardReader of one file."""

    def __init__(self, path: Path) -> None:
        """Check the structure and read the index. What it raises for another file, `open_shard` translates."""
        self.path, self._file = path, PositionedFile(path)
        require_memory(_LIBRARY_BYTES)
        self._arrays, content = _stored_arrays(path, self._file.num_bytes)
        self.index = self._read_index()
        self.index.check()
        if self.index.content != content:
            raise CacheError("its index does not agree with its own hash")
        for level in self.index.levels:
            shape = self._arrays[level].shape
            if len(shape) != 3 or shape[:2] != (self.index.num_views, self.index.num_frames):
                expected = f"({self.index.num_views}, {self.index.num_frames}, channels)"
                raise CacheError(f"{level} has the shape {shape}; expected {expected}")
        self.widths = {level: self._arrays[level].shape[2] for level in self.index.levels}

    def read_into(self, level: Level, view: int, start: int, out_FC: NDArray[np.float16]) -> None:
        array = self._arrays[level]
        assert out_FC.flags.c_contiguous
        assert 0 <= start <= start + len(out_FC) <= array.shape[1]
        row_bytes = array.shape[2] * out_FC.itemsize
        position = array.start + (view * array.shape[1] + start) * row_bytes
        self._file.read_into(out_FC.reshape(-1).view(np.uint8).data, position)

    def _read_array(self, name: str) -> NDArray[Any]:
        stored = self._arrays[name]
        array: NDArray[Any] = np.empty(stored.shape, dtype=stored.dtype)
        self._file.read_into(array.reshape(-1).view(np.uint8).data, stored.start)
        return array

    def _read_index(self) -> ShardIndex:
        return ShardIndex(
            video_ids=tuple(video_id.decode() for video_id in self._read_array("video_id").tolist()),
            offsets=self._read_array("offsets"),
            pts_seconds=self._read_array("pts_seconds"),
            checksums=self._read_array("checksum"),
            levels=tuple(level for level in LEVELS if level in self._arrays),
            notes=self._read_array("notes").item().decode(),
        )


class _StoredArray:
    """Where one array lies in the file."""

    def __init__(self, name: str, dataset: "h5py.h5d.DatasetID", file_bytes: int) -> None:
        settings = dataset.get_create_plist()
        if settings.get_layout() != h5py.h5d.CONTIGUOUS or settings.get_nfilters() or settings.get_external_count():
            raise CacheError(f"array {name!r} is chunked, filtered, virtual or stored in another file; shards are not")
        self.shape: tuple[int, ...] = dataset.shape
        self.dtype: np.dtype[Any] = dataset.dtype
        expected = "S" if name in ("video_id", "notes") else _DTYPES.get(name, "<f2")
        if (self.dtype.kind if expected == "S" else self.dtype.str) != expected:
            raise CacheError(f"array {name!r} has type {self.dtype}; expected {expected}")
        if expected != "S" and dataset.get_type() != h5py.h5t.py_create(np.dtype(expected)):
            raise CacheError(f"array {name!r} has a type that is stored otherwise than {expected}")
        num_bytes = int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize
        if name not in LEVELS and num_bytes > MAX_INDEX_BYTES:
            # A sparse file can be that long without taking space.
            raise CacheError(f"array {name!r} of shape {self.shape} is larger than in any shard")
        self.start: int = dataset.get_offset() if num_bytes else 0
        if num_bytes == 0 or self.start is None or self.start + num_bytes > file_bytes:
            raise CacheError(f"array {name!r} of shape {self.shape} does not lie in a file of {file_bytes} bytes")


_DTYPES = {"offsets": "<i8", "pts_seconds": "<f8", "checksum": "<u8"}


def _stored_arrays(path: Path, file_bytes: int) -> tuple[dict[str, _StoredArray], str]:
    """Where each array lies, and the content hash. Refuses whatever a shard of ours never has before following it."""
    with h5py.File(path, "r", locking=False) as file:
        names = set(file.id)
        levels = {name.encode() for name in LEVELS} & names
        if names != levels | {name.encode() for name in _INDEX} or not levels:
            raise CacheError(f"it holds {sorted(names)}; expected {sorted(_INDEX)} and levels")
        arrays = {}
        for name in names:
            if file.id.links.get_info(name).type != h5py.h5l.TYPE_HARD:
                raise CacheError(f"{name!r} is a link, perhaps to another file; links are not followed")
            if h5py.h5o.get_info(file.id, name).type != h5py.h5o.TYPE_DATASET:
                raise CacheError(f"{name!r} is not an array")
            arrays[name.decode()] = _StoredArray(name.decode(), h5py.h5d.open(file.id, name), file_bytes)
        if _attribute(file, "format") != _FORMAT:
            raise CacheError(f"its format is not {_FORMAT}; another version of this program may have written it")
        return arrays, _attribute(file, "content")


def _attribute(file: h5py.File, name: str) -> str:
    attribute = file.attrs.get_id(name)
    if attribute.shape != () or attribute.dtype.kind != "S" or attribute.dtype.itemsize > 64:
        raise CacheError(f"its attribute {name!r} is not a short text")
    return str(file.attrs[name], "ascii")
