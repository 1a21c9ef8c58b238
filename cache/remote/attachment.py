"""Caches in an object store: made there, found there, attached to a folder of this machine.

A cache in a store exists once its cache.json does. remote.json in a working copy says where the store is.
"""

import os
import secrets
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import xxhash

from cache.common.errors import CacheError, DatasetError
from cache.common.files import (
    from_json,
    raise_if_unreadable,
    read_sealed_json,
    sealed_json,
    unsealed_json,
    write_sealed_json,
)
from cache.dataset import Dataset, dataset_bytes, dataset_of
from cache.description import Description, description_json, description_of
from cache.remote.client import Location, Objects
from cache.storage import create_folder

FILE: Final = "remote.json"

COPY_BYTES: Final = 64 << 30
"""Default limit on the bytes of all shards in a working copy."""

_MAX_DESCRIPTION_BYTES = 16 << 20
_MAX_DATASET_BYTES = 16 << 30


@dataclass(frozen=True, kw_only=True)
class Attachment:
    """The content of remote.json."""

    location: str
    """s3://bucket/prefix."""
    driver: str
    """Tells this working copy from others of the same cache."""
    copy_bytes: int
    """Limit on the bytes of all shards in the working copy."""

    def __post_init__(self) -> None:
        Location.parse(self.location)

    @classmethod
    def read(cls, folder: Path) -> "Attachment | None":
        """Of the working copy in `folder`; None if the cache is in the folder itself."""
        if not os.path.lexists(folder / FILE):
            return None
        try:
            return from_json(read_sealed_json(folder / FILE), cls, exact=False)
        except (OSError, ValueError) as error:
            raise_if_unreadable(error, folder / FILE)
            raise CacheError(f"{folder / FILE} does not say where the cache's store is: {error!r}") from error


def publish(folder: Path, dataset: Dataset, description: Description, location: Location | None) -> None:
    """Make an empty cache in `folder`, or at `location` with `folder` as its working copy.

    A cache in a store exists once its cache.json does. Raises `CacheError` if there is a cache already.
    """
    if location is None:
        create_folder(folder, dataset, description)
        return
    objects = Objects(location)
    name = write_dataset_object(objects, dataset)
    # The nonce tells apart two machines that make the same cache at the same time: one of them succeeds.
    value = {**description_json(description), "dataset": name, "nonce": secrets.token_hex(16)}
    if not objects.create("cache.json", sealed_json(value)):
        raise CacheError(f"{location} holds a cache already; open it, or choose another prefix")
    attach(folder, location)


def attach(folder: Path, location: Location, copy_bytes: int = COPY_BYTES) -> None:
    """Make `folder` a working copy of the cache at `location`; it must not exist, or be one already."""
    description, dataset = required(Objects(location))
    there = Attachment.read(folder)
    if there is not None and there.location == str(location):
        if there.copy_bytes != copy_bytes:
            write_sealed_json(folder / FILE, {"format": 1, **asdict(replace(there, copy_bytes=copy_bytes))})
        return
    attachment = Attachment(location=str(location), driver=secrets.token_hex(8), copy_bytes=copy_bytes)
    content = {"format": 1, **asdict(attachment)}
    create_folder(folder, dataset, description, lambda made: write_sealed_json(made / FILE, content))


def dataset_name(location: Location) -> str:
    """Name of the dataset of the cache at `location`. Raises `CacheError` if there is no cache."""
    return required(Objects(location))[1].name


def find_cache(objects: Objects) -> tuple[Description, str] | None:
    """The cache in the store, and the object of the dataset it was made with; None if there is no cache."""
    found = objects.read("cache.json", _MAX_DESCRIPTION_BYTES)
    if found is None:
        return None
    value = unsealed_json(found[0], f"{objects.location}/cache.json")
    description = description_of(value, str(objects.location))
    if not isinstance(value.get("dataset"), str):
        raise CacheError(f"{objects.location}/cache.json names no dataset; it was changed or is damaged")
    return description, value["dataset"]


def required(objects: Objects) -> tuple[Description, Dataset]:
    """The cache in the store, and the dataset it was made with. Raises `CacheError` if there is no cache."""
    found = find_cache(objects)
    if found is None:
        where = objects.location
        raise CacheError(f"there is no cache at {where}: `make extract CACHE={where}` makes one")
    return found[0], read_dataset_object(objects, found[1])


def write_dataset_object(objects: Objects, dataset: Dataset) -> str:
    """Put a dataset into the store. Returns its object's name, which contains its hash."""
    content = dataset_bytes(dataset)
    name = f"datasets/{xxhash.xxh3_128_hexdigest(content)}.json"
    objects.write(name, content)
    return name


def read_dataset_object(objects: Objects, name: str) -> Dataset:
    """The inverse of `write_dataset_object`. Raises `DatasetError` if the object is missing or was changed."""
    where = f"{objects.location}/{name}"
    found = objects.read(name, _MAX_DATASET_BYTES)
    if found is None or f"datasets/{xxhash.xxh3_128_hexdigest(found[0])}.json" != name:
        raise DatasetError(f"{where} is missing or not what was written; extract the dataset again")
    return dataset_of(found[0], where)
