"""Where a cache in an object store lies: `s3://bucket/prefix`, checked once."""

import re
from dataclasses import dataclass

from cache.errors import CacheError

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"[A-Za-z0-9_=+-][A-Za-z0-9._=+-]*(/[A-Za-z0-9_=+-][A-Za-z0-9._=+-]*)*")
"""Names that every server and every local folder take as they are; no part begins with a point."""


@dataclass(frozen=True)
class Location:
    """A bucket, and the prefix of all names in it that belong to one cache."""

    bucket: str
    prefix: str

    @classmethod
    def parse(cls, text: str) -> "Location":
        """The location that `s3://bucket/prefix` names; CacheError where it is anything else."""
        scheme, separator, rest = text.partition("://")
        bucket, _, prefix = rest.partition("/")
        if "@" in bucket:
            # Not quoted: it holds what nobody should see.
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
