"""index.json of a published cache: each object's size and SHA-256. The index's own SHA-256 vouches for the rest.

A copy of the index is in each working copy, so that a server cannot change unnoticed what it once promised.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec

from cache.common.errors import CacheError, DamageError, UnsafePathError
from cache.common.files import JSON_BYTES, from_json
from cache.dataset import check_relative_path
from cache.ledger import Count

NAME: Final = "index.json"
MAX_BYTES: Final = JSON_BYTES
"""Of an index; one of a million videos has a tenth."""

_OBJECT = re.compile(
    r"cache\.json|datasets/[0-9a-f]{32}\.json|records/\d{8,10}\.json|shards/[0-9a-f]{32}\.(h5|zarr)(/.+)?"
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One object."""

    num_bytes: Count
    sha256: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]


@dataclass(frozen=True, kw_only=True)
class Index:
    """All objects of a published cache by name."""

    format: Annotated[int, msgspec.Meta(ge=1, le=1)]
    objects: Mapping[str, Entry]

    def __post_init__(self) -> None:
        for name in self.objects:
            check_relative_path(name)
            if not _OBJECT.fullmatch(name):
                raise UnsafePathError(f"{name!r} is not the name of an object of a cache")


def index_bytes(objects: Mapping[str, Entry]) -> bytes:
    """The file, one object a line; equal objects give equal bytes."""
    value = {name: vars(entry) for name, entry in sorted(objects.items())}
    return (json.dumps({"format": 1, "objects": value}, indent=1) + "\n").encode()


def index_of(content: bytes, where: str) -> Index:
    """The inverse. Raises `DamageError` naming `where` if it is something else."""
    try:
        return from_json(msgspec.json.decode(content), Index)
    except (CacheError, UnsafePathError, ValueError, AttributeError, RecursionError) as error:
        raise DamageError(f"{where} is not the index of a published cache: {str(error)[:300]}") from error


def sha256_of(content: bytes) -> str:
    """In hex."""
    return hashlib.sha256(content).hexdigest()


def check_successor(old: Index, new: Index, where: str) -> str:
    """What `new` has more than `old`, as text. Raises `DamageError` if it takes something back.

    Records and the description are for ever. Other names contain the hash of what they name, so they may go.
    """
    for name, entry in old.objects.items():
        there = new.objects.get(name)
        if there is None and name.startswith(("datasets/", "shards/")):
            continue
        if there != entry:
            raise DamageError(
                f"{where} is not what it was: {name} was {'changed' if there else 'removed'}. Ask whoever publishes "
                "it; if you trust what is there now, remove the working copy and attach it again"
            )
    added = new.objects.keys() - old.objects.keys()
    kinds = [(kind, sum(name.startswith(f"{kind}/") for name in added)) for kind in ("records", "datasets", "shards")]
    return ", ".join(f"{count} {kind}" for kind, count in kinds)
