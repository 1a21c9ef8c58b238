"""Shards: write-once files with the features of some videos, in one of two formats under one contract."""

from pathlib import Path
from typing import Final, Literal, get_args

from cache.common.errors import CacheError, DamageError
from cache.common.files import raise_if_unreadable
from cache.shards.protocol import ShardData, ShardReader

Backend = Literal["h5", "zarr"]

BACKENDS: Final[tuple[Backend, ...]] = get_args(Backend)

SUFFIXES: Final[dict[Backend, str]] = {"h5": ".h5", "zarr": ".zarr"}
"""How a shard's name ends."""


def encode(backend: Backend, data: ShardData) -> dict[str, bytes]:
    """The bytes of a shard's files by their path below it; a shard that is one file has it under the empty name."""
    # Each library takes a third of a second to import, and a cache has one format.
    if backend == "h5":
        from cache.shards import hdf5

        return hdf5.encode(data)
    from cache.shards import zarr

    return zarr.encode(data)


def open_shard(path: Path, backend: Backend) -> ShardReader:
    """Open a shard and check its structure and index. Raises `DamageError` if it was changed."""
    try:
        if backend == "h5":
            from cache.shards.hdf5 import Hdf5Shard

            return Hdf5Shard(path)
        from cache.shards.zarr import ZarrShard

        return ZarrShard(path)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, MemoryError, CacheError) as error:
        raise_if_unreadable(error, path)
        raise DamageError(f"shard {path} is not what was written: {error}") from error
