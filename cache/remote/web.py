"""A published cache on a web server: read only, no credentials, each object checked against the index.

Nothing that a server does is believed: not lengths, not redirects to anything but https, not that an answer ends. No
answer is decompressed. A transfer that was cut goes on where it was (Range) if the server can, else from the start.
"""

import hashlib
import http.client
import io
import os
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO
from urllib.error import HTTPError, URLError
from urllib.parse import urljoin, urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    getproxies,
)

from cache.common.errors import CacheError, DamageError
from cache.remote.address import WebAddress, check_secure
from cache.remote.client import Location, Objects, RetryPolicy
from cache.remote.index import MAX_BYTES, NAME, Index

RETRIES = RetryPolicy()

STALL_SECONDS = 30.0
"""A connection that brings no byte for this long counts as cut."""

_ANSWER_SECONDS, _SLOWEST = 60.0, 32 << 10
"""An answer may take so long, and a second more for each so many bytes."""

_MAX_READ_BYTES = 1 << 30
"""Of an object that is read into memory: the dataset of two million videos."""

_REDIRECTS = 5
_BLOCK_BYTES = 1 << 16


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
        if not fetch(f"{self.location}/{name}", out, num_bytes, exact=True):
            raise DamageError(f"{self.location}/{name} is not there, or not any more")


def fetch_index(location: WebAddress) -> bytes:
    """The index as the server has it now. Raises `CacheError` if there is none."""
    out = io.BytesIO()
    if not fetch(f"{location}/{NAME}", out, MAX_BYTES, exact=False):
        raise CacheError(
            f"there is no published cache at {location}: it has no {NAME}, as `mrrn cache publish` makes it"
        )
    return out.getvalue()


def _check_hash(found: str, expected: str, where: str) -> None:
    if found != expected:
        raise DamageError(
            f"{where} is not what was published: its SHA-256 is {found[:16]}…, the index has {expected[:16]}…. Nothing "
            "of it is used; tell whoever publishes it"
        )


# -- one transfer ------------------------------------------------------------------------------------------------------


def fetch(url: str, out: BinaryIO, num_bytes: int, *, exact: bool) -> bool:
    """Write what is at `url` to `out`: `num_bytes`, or at most so many unless `exact`. False if there is nothing.

    Raises `DamageError` if it has another length, `CacheError` if it does not come or leads to where nothing is read.
    """
    since, pause, best = time.monotonic(), RETRIES.pause_seconds, 0
    # However often it is cut.
    last = since + RETRIES.seconds + num_bytes / _SLOWEST
    advice = "What has come is kept; the same command goes on from there"
    while True:
        try:
            _one_answer(url, out, num_bytes, exact=exact)
            return True
        except HTTPError as error:
            error.close()
            if error.code in (404, 410):
                return False
            reason = f"status {error.code}"
            final = error.code < 500 and error.code not in (408, 425, 429)
        except (OSError, http.client.HTTPException) as error:
            cause = error.reason if isinstance(error, URLError) else error
            reason, final = str(cause)[:200] or type(cause).__name__, isinstance(cause, ssl.SSLCertVerificationError)
            if final:
                advice = "If an authority of your own has signed its certificate, name that one's file: SSL_CERT_FILE="
        now = time.monotonic()
        if out.tell() > best:
            since, pause, best = now, RETRIES.pause_seconds, out.tell()
        if final or now + pause > min(since + RETRIES.seconds, last):
            raise CacheError(f"{url} cannot be fetched: {reason}. {advice}")
        time.sleep(pause)
        pause = min(2 * pause, RETRIES.longest_pause_seconds)


def _one_answer(url: str, out: BinaryIO, num_bytes: int, *, exact: bool) -> None:
    """One request for what is missing. Raises the network's errors, also if the answer ends early."""
    have = out.tell() if exact else 0
    with _opened(url, have, _ANSWER_SECONDS + (num_bytes - have) / _SLOWEST) as answer:
        if answer.status == 206 and not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise ConnectionError(f"asked for bytes from {have:,} on, got others")
        if answer.status != 206:
            out.seek(have := 0)
            out.truncate()
        # The standard library reads the length; without one, the body ends with the connection.
        length = answer.length
        if length is not None and (have + length > num_bytes or (exact and have + length != num_bytes)):
            raise _length_error(url, f"{have + length:,}", num_bytes, exact=exact)
        while block := answer.read1(_BLOCK_BYTES):
            have += len(block)
            if have > num_bytes:
                raise _length_error(url, "more", num_bytes, exact=exact)
            try:
                out.write(block)
            except OSError as error:
                raise CacheError(f"{url} cannot be kept: {error.strerror}; mend that, run the command again") from error
        if answer.length or (exact and have < num_bytes):
            raise ConnectionError(f"the connection was cut at {have:,} of {num_bytes:,} bytes")


def _length_error(url: str, found: str, num_bytes: int, *, exact: bool) -> DamageError:
    expected = f"{num_bytes:,} were published" if exact else f"at most {num_bytes:,} are read"
    return DamageError(f"{url} has {found} bytes; {expected}. Nothing of it is used")


@contextmanager
def _opened(url: str, start: int, seconds: float) -> Iterator[http.client.HTTPResponse]:
    """The answer to a request for the bytes from `start` on; its connection is cut after `seconds`."""
    sockets: list[socket.socket] = []
    late = threading.Event()

    def cut() -> None:
        late.set()
        for each in sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    # A server that sends a byte now and then evades every limit on a single wait.
    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        with _follow(_opener(sockets), url, start) as answer:
            yield answer
        if late.is_set():
            # What was cut within its headers looks complete.
            raise TimeoutError(f"it took longer than {seconds:.0f} s")
    finally:
        timer.cancel()
        for each in sockets:
            each.close()


def _follow(opener: OpenerDirector, url: str, start: int) -> http.client.HTTPResponse:
    origin = url
    for _ in range(_REDIRECTS):
        request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
        try:
            answer: http.client.HTTPResponse = opener.open(request, timeout=STALL_SECONDS)
            return answer
        except HTTPError as error:
            target = error.headers.get("Location")
            if error.code not in (301, 302, 303, 307, 308) or not target:
                raise
            # The body, which may be endless, is not read.
            error.close()
        try:
            url = urljoin(url, target)
            check_secure(url)
            foreign = urlsplit(url).scheme == "http" and urlsplit(url).netloc != urlsplit(origin).netloc
            if foreign or "@" in urlsplit(url).netloc:
                raise CacheError("it leads to another server of this machine, or names a user")
        except (ValueError, CacheError) as error:
            raise CacheError(f"{origin} leads on to where nothing is read: {error}") from None
    raise CacheError(f"{origin} leads on and on: more than {_REDIRECTS} redirects")


def _opener(sockets: list[socket.socket]) -> OpenerDirector:
    """Opens http and https and nothing else, through the environment's proxy for https; sends nothing about the user.

    Puts a second handle of each connection into `sockets`.
    """

    def connection(kind: Callable[..., Any], host: str, **options: Any) -> Any:
        made = kind(host, **options)

        def create(*arguments: Any, **named: Any) -> socket.socket:
            opened = socket.create_connection(*arguments, **named)
            sockets.append(socket.socket(fileno=os.dup(opened.fileno())))
            return opened

        # Before TLS begins: a handshake may be slow on purpose, too.
        made._create_connection = create
        return made

    class Plain(HTTPHandler):
        def http_open(self, req: Request) -> http.client.HTTPResponse:
            return self.do_open(partial(connection, http.client.HTTPConnection), req)

    class Secure(HTTPSHandler):
        def https_open(self, req: Request) -> http.client.HTTPResponse:
            return self.do_open(partial(connection, http.client.HTTPSConnection), req)

    opener = OpenerDirector()
    proxies = {kind: proxy for kind, proxy in getproxies().items() if kind == "https"}
    for handler in (ProxyHandler(proxies), Plain(), Secure(), HTTPDefaultErrorHandler(), HTTPErrorProcessor()):
        opener.add_handler(handler)
    opener.addheaders = [("User-Agent", "mrrn")]
    return opener
