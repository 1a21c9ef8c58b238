"""Addresses of published caches on web servers."""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from cache.common.errors import CacheError

_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
_PATH = re.compile(r"(/[A-Za-z0-9._~=+-]+)*")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|::1")


@dataclass(frozen=True)
class WebAddress:
    """Where a published cache is: `https://host/path`, or `http://` on this machine, for trying it out."""

    text: str

    @classmethod
    def parse(cls, text: str) -> "WebAddress":
        """Raises `CacheError` if it is anything else, and does not quote what may be secret."""
        text = text.rstrip("/")
        try:
            parts = urlsplit(text)
            host, _ = parts.hostname or "", parts.port
        except ValueError:
            raise CacheError("the cache's address cannot be read: expected https://host/path") from None
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise CacheError(
                "a published cache's address has a password, a query or a fragment in it: expected https://host/path. "
                "No credentials are ever sent"
            )
        if parts.scheme != "https" and not (parts.scheme == "http" and host in _THIS_MACHINE):
            raise CacheError(
                f"{parts.scheme}://{parts.netloc} is not https: whoever is on the way could change what comes. Only "
                "https:// is read (http:// on this machine, to try it out)"
            )
        if not _HOST.fullmatch(host) or not _PATH.fullmatch(parts.path) or {".", ".."} & {*parts.path.split("/")}:
            raise CacheError(
                f"{text!r} is not the address of a published cache: expected https://host/path, the path of letters, "
                "digits and . _ ~ = + - /"
            )
        return cls(text)

    def __str__(self) -> str:
        return self.text
