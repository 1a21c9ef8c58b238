"""Arrays that other programs wrote: .npy, .npz, HDF5. Nothing in them is run, followed or believed.

Found first by name alone, then read one by one, after their declared type and size were checked.
"""

import lzma
import os
import signal
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from multiprocessing import TimeoutError, get_context
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

from cache.common.errors import DatasetError
from cache.common.files import raise_if_unreadable
from extract.datasets.paths import require_folder, scan_folder

SUFFIXES: Final = frozenset((".npy", ".npz", ".h5", ".hdf5"))

MOST_BYTES: Final = 4 << 30
"""Of one array of one video: in float32 with 2,048 channels five hours at 25 features a second."""

_SAFE_FILTERS: Final = frozenset((1, 2, 3, 4, 5, 6, 32000))
"""HDF5's own filters, and LZF, which h5py brings. For any other HDF5 would load a library from the disk."""

_UNREADABLE: Final = (
    *(OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError, MemoryError, RecursionError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, OverflowError, SyntaxError, tokenize.TokenError),
)
"""What numpy, zipfile and h5py raise for files that are not what they should be."""

HDF5_SECONDS: Final = 300.0
"""For one file's list of arrays, or one array."""

Array = NDArray[Any]
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class ForeignArray:
    """An array in a file, not yet read."""

    file: Path
    name: str = ""
    """Of the member or dataset in the file; empty for the only one of a .npy file."""
    frames: tuple[int, int] | None = None
    """The part `[start, stop)` of the frames that is meant; None for all."""
    problem: str = field(default="", compare=False)
    """Why the file cannot be read at all; empty if it can."""

    def __str__(self) -> str:
        return f"{self.file}" + (f", array {self.name!r}" if self.name else "")

    def check(self) -> None:
        """Raises `DatasetError` if the file cannot be read at all."""
        if self.problem:
            raise DatasetError(f"{self} cannot be read: {self.problem}")

    def read(self) -> Array:
        """The numbers. Raises `DatasetError` naming the array if they cannot be read, are too many or no numbers."""
        self.check()
        try:
            match self.file.suffix.lower():
                case ".npy":
                    with self.file.open("rb") as file:
                        return _read_npy(file)
                case ".npz":
                    with _archive(self.file, self.file.stat().st_mtime_ns).open(f"{self.name}.npy") as member:
                        return _read_npy(member)
                case _:
                    return _CHILD.call(_read_hdf5, self.file, self.name, self.frames)
        except _UNREADABLE as error:
            raise_if_unreadable(error, self.file)
            raise DatasetError(f"{self} cannot be read: {error}") from error


def find_arrays(source: Path) -> tuple[dict[str, ForeignArray], list[str]]:
    """All arrays of a file, or of the files below a folder, by name; and what was passed over, for the user.

    A name is the file's path in the folder, without suffix, then the array's name in the file, '/' between them. Where
    an HDF5 file has all videos one after the other (`video_id [N]`, `offsets [N + 1]`) it is the video's id, then the
    array's name. Raises `DatasetError` if the source or a single file cannot be read; of a folder's files one by one.
    """
    if source.is_dir():
        root = require_folder(source, "give a folder")
        scan = scan_folder(root, SUFFIXES)
        files, told = [(os.path.splitext(name)[0], root / name) for name in scan.videos], scan.passed_over_text()  # noqa: PTH122
    elif source.is_file() and source.suffix.lower() in SUFFIXES:
        files, told = [("", source)], []
    else:
        raise DatasetError(f"{source} is neither a folder nor a file that ends in {', '.join(sorted(SUFFIXES))}")
    found: dict[str, ForeignArray] = {}
    for prefix, file in files:
        for name, array in _listed(prefix, file):
            if (other := found.setdefault(name, array)) is not array:
                raise DatasetError(f"{other} and {array} are both {name!r}: move one of them away")
    if len(files) == 1:
        for array in found.values():
            array.check()
    return found, told


def _listed(prefix: str, file: Path) -> Iterator[tuple[str, ForeignArray]]:
    """The arrays of one file by name; one with a problem if the file cannot be read."""
    try:
        match file.suffix.lower():
            case ".npy":
                yield prefix or file.stem, ForeignArray(file=file)
            case ".npz":
                for each in _archive(file, file.stat().st_mtime_ns).namelist():
                    if each.endswith(".npy"):
                        name = each.removesuffix(".npy")
                        yield "/".join(filter(None, (prefix, name))), ForeignArray(file=file, name=name)
            case _:
                names, spans = _CHILD.call(_list_hdf5, file)
                if spans is None:
                    for name in names:
                        yield "/".join(filter(None, (prefix, name))), ForeignArray(file=file, name=name)
                    return
                for video, frames in spans.items():
                    for name in names:
                        yield f"{video}/{name}", ForeignArray(file=file, name=name, frames=frames)
    except _UNREADABLE as error:
        raise_if_unreadable(error, file)
        yield prefix or file.stem, ForeignArray(file=file, problem=str(error) or type(error).__name__)


@lru_cache(maxsize=1)
def _archive(path: Path, modified_ns: int) -> zipfile.ZipFile:
    """The archive last opened stays open: its list of members, as long as there are videos, is read once."""
    return zipfile.ZipFile(path)


def _check(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """The bytes of an array that declares this. ValueError if they are too many, or no plain numbers."""
    if dtype.kind not in "fiu" or dtype.itemsize > 8:
        raise ValueError(f"its type is {dtype}; expected numbers (float16, float32, float64)")
    num_bytes = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if not 0 < num_bytes <= MOST_BYTES:
        raise ValueError(f"its shape {shape} declares {num_bytes:,} bytes; expected 1 to {MOST_BYTES:,}")
    return num_bytes


def _read_npy(file: BinaryIO | Any) -> Array:
    """One array in numpy's own format; never a pickle."""
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(np.lib.format.read_magic(file))
    if read_header is None:
        raise ValueError("its version of the .npy format is not one that arrays of numbers have")
    shape, columns_first, dtype = read_header(file)
    num_bytes = _check(shape, dtype)
    content = file.read(num_bytes)
    # Reading beyond the end has a zip's checksum compared, too.
    if len(content) != num_bytes or file.read(1):
        there = f"{len(content):,}" if len(content) < num_bytes else "more"
        raise ValueError(f"its shape {shape} of {dtype} declares {num_bytes:,} bytes; there are {there}")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if columns_first else "C")


class _Child:
    """A process that calls functions for this one: HDF5 itself may hang or crash when a file was made to that end."""

    pool: Any = None

    def call(self, function: Callable[..., _T], *arguments: object) -> _T:
        """What the function returns. ValueError if that takes longer than HDF5_SECONDS."""
        # Ctrl-C is for this process, whose end is that of the other.
        self.pool = self.pool or get_context("spawn").Pool(1, signal.signal, (signal.SIGINT, signal.SIG_IGN))
        try:
            result: _T = self.pool.apply_async(function, arguments).get(HDF5_SECONDS)
            return result
        except TimeoutError:
            self.pool.terminate()
            self.pool = None
            raise ValueError(f"HDF5 does not come to its end within {HDF5_SECONDS:.0f} s, or crashes") from None


_CHILD = _Child()


def _list_hdf5(path: Path) -> tuple[list[str], dict[str, tuple[int, int]] | None]:
    """The arrays in a file, and each video's frames if it has all videos one after the other."""
    with h5py.File(path, "r", locking=False) as file:
        names = [*_datasets(file["/"].id, "", set())]
        spans = _spans(file, names)
        return (names, None) if spans is None else (_with_frames(file, names, spans), spans)


def _datasets(group: "h5py.h5g.GroupID", inside: str, seen: set[int]) -> Iterator[str]:
    """Paths of all arrays below a group. ValueError for links: they may lead to other files, or in circles."""
    place = h5py.h5o.get_info(group).addr
    if place in seen:
        raise ValueError(f"group {inside!r} has two places in the file, and may be in itself")
    seen.add(place)
    for raw in group:
        name = f"{inside}{raw.decode()}"
        if group.links.get_info(raw).type != h5py.h5l.TYPE_HARD:
            raise ValueError(f"{name!r} is a link, perhaps to another file; links are not followed")
        match h5py.h5o.get_info(group, raw).type:
            case h5py.h5o.TYPE_GROUP:
                yield from _datasets(h5py.h5g.open(group, raw), f"{name}/", seen)
            case h5py.h5o.TYPE_DATASET:
                yield name


def _open_dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """ValueError if its numbers lie in other files, or need a filter that HDF5 does not bring."""
    dataset = h5py.Dataset(h5py.h5d.open(file.id, name.encode()))
    settings = dataset.id.get_create_plist()
    if settings.get_layout() == h5py.h5d.VIRTUAL or settings.get_external_count():
        raise ValueError("its numbers lie in other files, which are not followed: give those files")
    filters = {settings.get_filter(i)[0] for i in range(settings.get_nfilters())}
    if not filters <= _SAFE_FILTERS:
        raise ValueError(f"it is compressed by filter {min(filters - _SAFE_FILTERS)}; expected gzip, LZF or none")
    return dataset


def _read_hdf5(path: Path, name: str, frames: tuple[int, int] | None) -> Array:
    with h5py.File(path, "r", locking=False) as file:
        return _numbers(file, name, frames)


def _numbers(file: h5py.File, name: str, frames: tuple[int, int] | None) -> Array:
    dataset = _open_dataset(file, name)
    if frames is None:
        _check(dataset.shape, dataset.dtype)
        return np.asarray(dataset[()])
    axis = max(dataset.ndim - 2, 0)
    _check((*dataset.shape[:axis], frames[1] - frames[0], *dataset.shape[axis + 1 :]), dataset.dtype)
    return np.asarray(dataset[(*[slice(None)] * axis, slice(*frames))])


def _spans(file: h5py.File, names: Collection[str]) -> dict[str, tuple[int, int]] | None:
    """Each video's frames in a file that has all videos one after the other; None if the file is none of those."""
    ids = next((name for name in ("video_id", "video_ids") if name in names), None)
    if ids is None or "offsets" not in names:
        return None
    stored = _open_dataset(file, ids)
    if stored.ndim != 1 or stored.size > 1 << 24 or h5py.check_string_dtype(stored.dtype) is None:
        raise ValueError(f"{ids} is {stored.dtype} {stored.shape}; expected texts, one for each video")
    videos = [text.decode() if isinstance(text, bytes) else str(text) for text in stored[()].tolist()]
    offsets = _numbers(file, "offsets", None)
    if offsets.shape != (len(videos) + 1,) or offsets.dtype.kind not in "iu":
        raise ValueError(f"offsets are {offsets.dtype} {offsets.shape}; expected {len(videos) + 1} integers")
    ends = [int(each) for each in offsets.tolist()]
    if ends[0] != 0 or any(stop < start for start, stop in pairwise(ends)):
        raise ValueError("offsets do not begin at 0 and grow")
    if len(set(videos)) != len(videos):
        raise ValueError(f"{ids} has an id twice")
    return dict(zip(videos, pairwise(ends), strict=True))


def _with_frames(file: h5py.File, names: Collection[str], spans: Mapping[str, tuple[int, int]]) -> list[str]:
    """The arrays that have all videos' frames along the one but last axis, or the only one."""
    frames = max(stop for _, stop in spans.values())
    shapes = {name: _open_dataset(file, name).shape for name in names if name != "offsets"}
    return [name for name, shape in shapes.items() if shape and shape[max(len(shape) - 2, 0)] == frames]
