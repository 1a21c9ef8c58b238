"""A published cache on a web server: read only, no credentials, each object checked against the index."""

import hashlib
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from cache.common.errors import CacheError, DamageError
from cache.remote.address import WebAddress
from cache.remote.client import Location, Objects
from cache.remote.https import FetchError, LengthError, fetch
from cache.remote.index import MAX_BYTES, NAME, Index

_MAX_READ_BYTES = 1 << 30
"""Of an object that is read into memory: the dataset of two million videos."""


def parse_location(text: str) -> Location | WebAddress:
    """A cache's address: `s3://bucket/prefix`, or `https://host/path`. Raises `CacheError` if it is neither."""
    return WebAddress.parse(text) if text.startswith(("https://", "http://")) else Location.parse(text)


class WebObjects(Objects):
    """The objects that the index lists. Those that write refuse. Thread-safe, also after a fork."""

    def __init__(self, location: WebAddress, index: Index) -> None:
        self.location, self._index = location, index
        self.requests = Counter()

    def __reduce__(self) -> tuple[Any, ...]:
        return (WebObjects, (self.location, self._index))

    def read(self, name: str, max_bytes: int) -> tuple[bytes, str] | None:
        """As in a store; the tag is the SHA-256."""
        entry = self._index.objects.get(name)
        if entry is None:
            return None
        if entry.num_bytes > min(max_bytes, _MAX_READ_BYTES):
            raise DamageError(f"{self.location}/{name}: {entry.num_bytes:,} bytes are declared; that is too much")
        out = io.BytesIO()
        self._get(name, out, entry.num_bytes)
        _check_hash(hashlib.sha256(out.getbuffer()).hexdigest(), entry.sha256, f"{self.location}/{name}")
        return out.getvalue(), entry.sha256

    def download(self, name: str, path: Path, num_bytes: int) -> None:
        """As from a store."""
        entry = self._index.objects.get(name)
        if entry is None or entry.num_bytes != num_bytes:
            there = "nothing" if entry is None else f"{entry.num_bytes:,} bytes"
            raise DamageError(f"{self.location}/{name}: the index has {there}, the record {num_bytes:,} bytes")
        with path.open("w+b") as out:
            self._get(name, out, num_bytes)
            out.flush()
            out.seek(0)
            _check_hash(hashlib.file_digest(out, "sha256").hexdigest(), entry.sha256, f"{self.location}/{name}")

    def names(self, folder: str, after: str = "") -> Iterator[tuple[str, int]]:
        """As in a store, from the index."""
        for name, entry in sorted(self._index.objects.items()):
            if name.startswith(f"{folder}/") and name > after:
                yield name, entry.num_bytes

    def write(self, name: str, content: bytes | Path) -> None:
        raise self._refusal()

    def create(self, name: str, content: bytes) -> bool:
        raise self._refusal()

    def replace(self, name: str, content: bytes, tag: str) -> bool:
        raise self._refusal()

    def delete(self, names: list[str]) -> None:
        raise self._refusal()

    def _refusal(self) -> CacheError:
        return CacheError(f"{self.location} is a published cache, which is read only; nothing was changed")

    def _get(self, name: str, out: BinaryIO, num_bytes: int) -> None:
        self.requests["get"] += 1
        url = f"{self.location}/{name}"
        if not _fetch(url, out, num_bytes, exact=True):
            raise DamageError(f"{url} is not there, or not any more")


def fetch_index(location: WebAddress) -> bytes:
    """The index as the server has it now. Raises `CacheError` if there is none."""
    out = io.BytesIO()
    if not _fetch(f"{location}/{NAME}", out, MAX_BYTES, exact=False):
        raise CacheError(
            f"there is no published cache at {location}: it has no {NAME}, as `mrrn cache publish` makes it"
        )
    return out.getvalue()


def _fetch(url: str, out: BinaryIO, num_bytes: int, *, exact: bool) -> bool:
    """False if there is no such file."""
    try:
        fetch(url, out, num_bytes, exact=exact, resume=exact)
    except LengthError as error:
        expected = f"{num_bytes:,} were published" if exact else f"at most {num_bytes:,} are read"
        raise DamageError(f"{url} has {error.found}; {expected}. Nothing of it is used") from error
    except FetchError as error:
        if error.status not in (404, 410):
            raise CacheError(f"{error}. What has come is kept; the same command goes on from there") from error
        return False
    return True


def _check_hash(found: str, expected: str, where: str) -> None:
    if found != expected:
        raise DamageError(
            f"{where} is not what was published: its SHA-256 is {found[:16]}…, the index has {expected[:16]}…. Nothing "
            "of it is used; tell whoever publishes it"
        )
