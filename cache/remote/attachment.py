"""Caches in an object store: made there, found there, attached to a folder of this machine.

A cache in a store exists once its cache.json does. remote.json in a working copy says where the store is.
"""

import os
import secrets
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Final

import click
import msgspec
import xxhash

from cache.common.errors import CacheError, DamageError, DatasetError
from cache.common.files import (
    ADDED_LATER,
    discard,
    from_json,
    raise_if_unreadable,
    read_bounded,
    read_sealed_json,
    sealed_json,
    unsealed_json,
    write_bytes_durably,
    write_sealed_json,
)
from cache.dataset import Dataset, dataset_bytes, dataset_of
from cache.description import Description, description_json, description_of
from cache.remote.address import WebAddress
from cache.remote.client import Location, Objects
from cache.remote.index import MAX_BYTES, Index, check_successor, index_of, sha256_of
from cache.remote.web import WebObjects, fetch_index, parse_location
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
    """s3://bucket/prefix, or https://host/path of a published cache."""
    driver: str
    """Tells this working copy from others of the same cache."""
    copy_bytes: int
    """Limit on the bytes of all shards in the working copy."""
    index: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64})?\Z")] = field(default="", metadata=ADDED_LATER)
    """SHA-256 of a published cache's index, a copy of which is in the working copy."""

    def __post_init__(self) -> None:
        parse_location(self.location)

    def objects(self, folder: Path) -> Objects:
        """Those of the cache that `folder` is a working copy of."""
        location = parse_location(self.location)
        if isinstance(location, WebAddress):
            return WebObjects(location, self.pinned(folder))
        return Objects(location)

    def pinned(self, folder: Path) -> Index:
        """The index of a published cache as it was when it was last attached."""
        file = folder / _index_name(self.index)
        try:
            content = read_bounded(file, MAX_BYTES)
        except (OSError, ValueError) as error:
            raise_if_unreadable(error, file)
            raise CacheError(f"{file} cannot be read: {error}; remove {folder} and attach it again") from error
        if sha256_of(content) != self.index:
            raise DamageError(f"{file} is not as it was written; remove {folder} and attach the cache again")
        return index_of(content, str(file))

    def write(self, folder: Path, index: bytes) -> None:
        """Write remote.json, after the index of a published cache."""
        if index:
            write_bytes_durably(folder / _index_name(self.index), index)
        write_sealed_json(folder / FILE, {"format": 1, **asdict(self)})

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


def make_cache(folder: Path, dataset: Dataset, description: Description, location: Location | None) -> None:
    """Make an empty cache in `folder`, or at `location` with `folder` as its working copy.

    A cache in a store exists once its cache.json does. Raises `CacheError` if there is a cache already.
    """
    if location is None:
        create_folder(folder, dataset, description)
        return
    make_in_store(Objects(location), dataset, description)
    attach(folder, location)


def make_in_store(objects: Objects, dataset: Dataset, description: Description) -> None:
    """Make an empty cache in the store. Raises `CacheError` if there is one already."""
    name = write_dataset_object(objects, dataset)
    # The nonce tells apart two machines that make the same cache at the same time: one of them succeeds.
    value = {**description_json(description), "dataset": name, "nonce": secrets.token_hex(16)}
    if not objects.create("cache.json", sealed_json(value)):
        raise CacheError(f"{objects.location} holds a cache already; open it, or choose another prefix")


class RemoteCache:
    """A cache as it is now where it is kept; each part is asked for once."""

    def __init__(self, location: Location | WebAddress) -> None:
        """Raises `CacheError` if nothing is published at a web address."""
        self.location = location
        self.index = fetch_index(location) if isinstance(location, WebAddress) else b""
        """Of a published cache."""

    def __str__(self) -> str:
        return str(self.location)

    @cached_property
    def contents(self) -> tuple[Description, Dataset]:
        """Its description, and the dataset it was made with. Raises `CacheError` if there is no cache."""
        if isinstance(self.location, WebAddress):
            return required(WebObjects(self.location, index_of(self.index, f"{self}/index.json")))
        return required(Objects(self.location))


def attach(folder: Path, location: Location | WebAddress | RemoteCache, copy_bytes: int = COPY_BYTES) -> None:
    """Make `folder` a working copy of the cache at `location`; it must not exist, or be one already.

    Trusts the index that a web server has at first; later ones only if they add to it.
    """
    remote = location if isinstance(location, RemoteCache) else RemoteCache(location)
    digest = sha256_of(remote.index) if remote.index else ""
    made = Attachment(location=str(remote), driver=secrets.token_hex(8), copy_bytes=copy_bytes, index=digest)
    there = Attachment.read(folder)
    if there is None or there.location != str(remote):
        description, dataset = remote.contents
        create_folder(folder, dataset, description, lambda new: made.write(new, remote.index))
        if digest:
            click.echo(f"{remote} has the index sha256 {digest}; from now on it is held to that")
        return
    if not digest:
        _ = remote.contents  # it may have been removed
    made = replace(made, driver=there.driver)
    if there.index != digest:
        added = check_successor(there.pinned(folder), index_of(remote.index, f"{remote}/index.json"), str(remote))
        click.echo(f"{remote} has more than before ({added}): its index is sha256 {digest} now, was {there.index}")
    if there != made:
        made.write(folder, remote.index)
    for file in folder.glob("index-*.json"):
        if file.name != _index_name(digest):
            discard(file)


def _index_name(digest: str) -> str:
    return f"index-{digest[:16]}.json"


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
