"""Objects below one prefix of a bucket, through obstore: requests are retried, counted, and fail without secrets.

Credentials come from the environment alone (AWS_*, web identity, the machine's role); AWS_ENDPOINT_URL names another
server than Amazon's. An error's text consists of the status and the server's error code only: the rest of an answer may
quote the request with its signature.
"""

import contextlib
import math
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cache.common.errors import CacheError, DamageError
from cache.remote.address import WebAddress

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ObjectStore as Store


_T = TypeVar("_T")
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z0-9.]{1,60})</Code>")
_KIND = re.compile(r"kind: ([A-Z][A-Za-z]{1,30})")
_KINDS = {"Connect": "no connection", "Timeout": "no answer in time", "Interrupted": "the connection was cut"}
_PAGE = 1000
_CONFLICTS = 8
_AGAIN = frozenset({"408", "425", "429"})
"""Client errors that are temporary."""

SMALL_SECONDS, BULK_SECONDS = 15, 600
"""Time limits of one request: for a record, and for a shard's file."""

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"[A-Za-z0-9_=+-][A-Za-z0-9._=+-]*(/[A-Za-z0-9_=+-][A-Za-z0-9._=+-]*)*")
"""Names that every server and every local folder accept unchanged; no part begins with a dot."""


@dataclass(frozen=True)
class Location:
    """A bucket, and the prefix of all names in it that belong to one cache."""

    bucket: str
    prefix: str

    @classmethod
    def parse(cls, text: str) -> "Location":
        """Returns the location of the text `s3://bucket/prefix`. Raises `CacheError` if it is anything else."""
        scheme, separator, rest = text.partition("://")
        bucket, _, prefix = rest.partition("/")
        if "@" in bucket:
            # Not quoted: it contains a secret.
            raise CacheError(
                "a cache's address has a name or password in it: give it as s3://bucket/prefix, and the credentials in "
                "the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
            )
        prefix = prefix.removesuffix("/")
        if (scheme, separator) != ("s3", "://") or not _BUCKET.fullmatch(bucket) or not _PREFIX.fullmatch(prefix):
            raise CacheError(
                f"{text.partition('?')[0]!r} is not the address of a cache: expected s3://bucket/prefix, the prefix of "
                "letters, digits and . _ = + - /, a prefix for each cache"
            )
        return cls(bucket, prefix)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How long and how often a failed request is repeated."""

    seconds: float = 75.0
    """Time limit from a request's first failure; shorter than other processes' wait for the ledger's lock."""
    pause_seconds: float = 0.1
    """Pause before the second attempt; about twice as long before each further one."""
    longest_pause_seconds: float = 5.0


class Objects:
    """The objects below one location. Names are relative to it. Thread-safe; a forked child opens its own."""

    def __init__(self, location: Location, policy: RetryPolicy = RetryPolicy()) -> None:
        """Raises `CacheError` if obstore is not installed or the AWS_* variables cannot be used."""
        self.location: Location | WebAddress = location
        self._policy, self._process = policy, os.getpid()
        self.requests: Counter[str] = Counter()
        """Attempts so far by kind: put, get, head, list (a page of 1,000 names), delete."""
        self._small, self._bulk = (open_store(location, seconds) for seconds in (SMALL_SECONDS, BULK_SECONDS))

    def __reduce__(self) -> tuple[Any, ...]:
        return (Objects, (self.location, self._policy))

    def read(self, name: str, max_bytes: int) -> tuple[bytes, str] | None:
        """Returns content and tag of a small object; None if it is missing. Raises `DamageError` if it is larger."""
        import obstore

        def read() -> tuple[bytes, str]:
            found = obstore.get(self._small, name)
            if found.meta["size"] > max_bytes:
                raise DamageError(f"{self.location}/{name} has {found.meta['size']:,} bytes; at most {max_bytes:,} fit")
            return bytes(found.bytes()), str(found.meta["e_tag"])

        try:
            return self._retried("get", name, read)
        except FileNotFoundError:
            return None

    def download(self, name: str, path: Path, num_bytes: int) -> None:
        """Download an object to a new file. Raises `DamageError` if it is missing or does not have `num_bytes`."""

        def check(found_bytes: int) -> None:
            if found_bytes != num_bytes:
                raise DamageError(f"{self.location}/{name} has {found_bytes:,} bytes; {num_bytes:,} were written")

        self.fetch(name, path, check)
        check(path.stat().st_size)

    def head(self, name: str) -> "ObjectMeta":
        """Returns what the store says of an object: size, tag, time. Raises `FileNotFoundError` if it is missing."""
        import obstore

        return self._retried("head", name, lambda: obstore.head(self._small, name))

    def fetch(self, name: str, path: Path, check: Callable[[int], None], deadline: float = math.inf) -> "ObjectMeta":
        """Download an object to a new file, after `check` has accepted its size. Raises `DamageError` if it is missing.

        Returns what the store says of it. Raises `CacheError` if it takes longer than `deadline`, a time of
        `time.monotonic`.
        """
        import obstore

        def fetch() -> "ObjectMeta":
            found = obstore.get(self._bulk, name)
            check(int(found.meta["size"]))
            with path.open("wb") as file:
                for block in found.stream(min_chunk_size=1 << 20):
                    file.write(block)
                    if time.monotonic() > deadline:
                        raise CacheError(f"{self.location}/{name} did not come in time")
            return found.meta

        try:
            return self._retried("get", name, fetch)
        except FileNotFoundError:
            raise DamageError(f"{self.location}/{name} is not there, or not any more") from None

    def write(self, name: str, content: bytes | Path) -> None:
        """Write an object, replacing any other."""
        import obstore

        self._retried("put", name, lambda: obstore.put(self._bulk, name, content, use_multipart=False))

    def create(self, name: str, content: bytes) -> bool:
        """Write a new object (If-None-Match). Returns False if there is another one, which stays."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        for _ in range(_CONFLICTS):
            try:
                self._retried("put", name, lambda: obstore.put(self._small, name, content, mode="create"))
                return True
            except AlreadyExistsError:
                # The answer to an earlier attempt may have been lost: then the object is ours.
                there = self.read(name, max(len(content), 1 << 20))
            if there is not None:
                return there[0] == content
            # Two wrote at the same time, and the server accepted neither (409).
            time.sleep(random.uniform(0.0, self._policy.pause_seconds))
        raise CacheError(f"{self.location}/{name}: other drivers keep writing it; run the same command again")

    def replace(self, name: str, content: bytes, tag: str) -> bool:
        """Replace the object that has this tag (If-Match). Returns False if it no longer exists."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            self._retried("put", name, lambda: obstore.put(self._small, name, content, mode={"e_tag": tag}))
        except (AlreadyExistsError, PreconditionError, FileNotFoundError):
            return False
        return True

    def names(self, folder: str, after: str = "") -> Iterator[tuple[str, int]]:
        """Yields name and bytes of all objects below `folder/` whose names sort after `after`, in order of names."""
        import obstore

        def page() -> list[tuple[str, int]]:
            found = next(iter(obstore.list(self._small, folder, offset=after or None, chunk_size=_PAGE)), [])
            return sorted((str(row["path"]), int(row["size"])) for row in found)

        while entries := self._retried("list", folder, page):
            yield from entries
            if len(entries) < _PAGE:
                return
            after = entries[-1][0]

    def delete(self, names: list[str]) -> None:
        """Remove objects; missing ones are ignored."""
        import obstore

        for name in names:
            with contextlib.suppress(FileNotFoundError):
                self._retried("delete", name, partial(obstore.delete, self._small, name))

    def _retried(self, kind: str, name: str, request: Callable[[], _T]) -> _T:
        """Returns the request's answer, repeating it as the policy says. Raises `CacheError` if it keeps failing."""
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        if os.getpid() != self._process:
            # obstore's threads do not exist in the child, which would wait for them for ever.
            raise CacheError(f"{self.location} was opened before a fork: open the cache in the child, or use spawn")
        pause, deadline = self._policy.pause_seconds, None
        while True:
            self.requests[kind] += 1
            try:
                return request()
            except (BaseError, FileNotFoundError) as error:
                asked = isinstance(error, AlreadyExistsError | PreconditionError | FileNotFoundError)
                if asked and "NoSuchBucket" not in str(error):
                    raise
                now = time.monotonic()
                deadline = now + self._policy.seconds if deadline is None else deadline
                if asked or _is_final(error) or now + pause > deadline:
                    raise CacheError(
                        f"{self.location}/{name}: the object store does not {kind} it ({reason_of(error)}). All that "
                        "was committed is safe: check the server, the bucket and the AWS_* variables, then run the "
                        "same command again"
                    ) from None
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, self._policy.longest_pause_seconds)


def open_store(location: Location, seconds: int) -> "Store":
    """Returns obstore's store for the location, with a time limit for one request. Tests replace this function."""
    try:
        from obstore.exceptions import BaseError
        from obstore.store import S3Store
    except ImportError:
        raise CacheError(
            f"{location} is in an object store, which needs the package obstore: pip install 'mrrn[s3]'"
        ) from None
    endpoints = [os.environ.get(name, "") for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")]
    try:
        return S3Store(
            location.bucket,
            prefix=location.prefix or None,
            client_options={
                "allow_http": any(endpoint.startswith("http://") for endpoint in endpoints),
                "timeout": timedelta(seconds=seconds),
                "connect_timeout": timedelta(seconds=5),
            },
            # Requests are repeated, and counted, by `Objects`.
            retry_config={"max_retries": 0},
        )
    except (BaseError, ValueError) as error:
        raise CacheError(f"{location} cannot be used: {reason_of(error)}; check the AWS_* variables") from None


def _status_and_code(error: Exception) -> tuple[str, str]:
    """HTTP status and the server's error code; empty where the error has none."""
    status, code = _STATUS.search(str(error)), _CODE.search(str(error))
    return status[1] if status else "", code[1] if code else ""


def reason_of(error: Exception) -> str:
    """Returns what went wrong, without anything else that the server or the request contained."""
    if "/latest/api/token" in str(error) or "/latest/meta-data" in str(error):
        return "no credentials: neither the environment nor this machine's role has any"
    status, code = _status_and_code(error)
    if status:
        return f"status {status}" + (f", {code}" if code else "")
    kind = _KIND.search(str(error))
    return _KINDS.get(kind[1], kind[1]) if kind else type(error).__name__


def _is_final(error: Exception) -> bool:
    """Whether repeating the request cannot help."""
    from obstore.exceptions import GenericError

    status, code = _status_and_code(error)
    if not isinstance(error, GenericError) or "/latest/api/token" in str(error):
        return True
    return code != "RequestTimeout" and status.startswith(("3", "4")) and status not in _AGAIN
