"""One file from a web server: published caches, remote videos and the authors' archives are all read by this.

Nothing that a server does is believed: not lengths, not redirects to anything but https, not that an answer ends. No
answer is decompressed, no words of a server are repeated, nothing about the user is sent.
"""

import http.client
import os
import socket
import string
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from email.message import Message
from functools import partial
from ssl import SSLCertVerificationError
from typing import Any, BinaryIO
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urljoin, urlsplit
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

from cache.common.errors import MrrnError
from cache.common.progress import progress
from cache.remote.client import RetryPolicy


@dataclass(frozen=True, kw_only=True)
class FetchRetries(RetryPolicy):
    """The same for one file: `seconds` count from the last byte that came."""

    pause_seconds: float = 2.0
    longest_pause_seconds: float = 32.0
    attempts: int = 6
    """Attempts in a row that may bring nothing before it fails."""


RETRIES = FetchRetries()

STALL_SECONDS = 30.0
"""A connection that brings no byte for this long counts as cut."""

_FILE_SECONDS, _SLOWEST = 75.0, 32 << 10
"""A file may take so long, and a second more for each so many bytes."""

_REDIRECTS = 5
_BLOCK_BYTES = 1 << 16

_FAILURES = (OSError, http.client.HTTPException, ValueError)
"""What requests raise; the last for addresses, also of redirects, that cannot be one."""


class FetchError(MrrnError):
    """A file does not come."""

    def __init__(self, url: str, reason: str, status: int | None = None) -> None:
        """`status` is that of the server's answer; None if there was none."""
        super().__init__(f"{url} cannot be fetched: {reason}")
        self.reason, self.status = reason, status


class LengthError(FetchError):
    """A file has another length than it may have."""

    def __init__(self, url: str, num_bytes: int, *, announced: bool) -> None:
        """`announced`: the server says that there are so many bytes; otherwise so many came, and there are more."""
        self.num_bytes, self.announced = num_bytes, announced
        self.found = f"{num_bytes:,} bytes" + ("" if announced else " or more")
        super().__init__(url, f"it has {self.found}")


def fetch(
    url: str,
    out: BinaryIO,
    most_bytes: int,
    *,
    exact: bool = False,
    resume: bool = False,
    seconds: float | None = None,
    title: str = "",
) -> Message:
    """Write what is at `url` to `out`, at most `most_bytes`, or just so many if `exact`. Returns the answer's headers.

    `resume`: go on behind what `out` has, also after a cut; otherwise each attempt starts over. `seconds` limits the
    whole transfer; by default the limit depends on `most_bytes`. `title` is that of a progress bar.

    Raises `LengthError` if the file has another length, and `FetchError` if it does not come or cannot be written.
    """
    since = time.monotonic()
    deadline = since + (_FILE_SECONDS + most_bytes / _SLOWEST if seconds is None else seconds)
    attempt, failures, best = 0, 0, out.tell()
    while True:
        attempt += 1
        try:
            return _one_answer(url, out, most_bytes, deadline, exact=exact, resume=resume, title=title)
        except _FAILURES as error:
            reason, status, final = _failure(error)
        now, came = time.monotonic(), out.tell() > (best if resume else 0)
        since = now if came else since
        failures = 0 if came and resume else failures + 1
        best = max(best, out.tell())
        pause = min(RETRIES.pause_seconds * 2 ** (failures - 1), RETRIES.longest_pause_seconds) if failures else 0.0
        if final or failures == RETRIES.attempts or now + pause > min(since + RETRIES.seconds, deadline):
            raise FetchError(url, f"{reason}, {attempt} attempts" if attempt > 1 else reason, status)
        time.sleep(pause)


def ask(url: str, seconds: float) -> Message:
    """Returns what a server says of the file at `url`, without a byte of it. Raises `FetchError` if it does not."""
    try:
        with _opened(url, 0, seconds, "HEAD") as answer:
            return answer.headers
    except _FAILURES as error:
        reason, status, _ = _failure(error)
        raise FetchError(url, reason, status) from error


def _failure(error: Exception) -> tuple[str, int | None, bool]:
    """Why a request failed, the answer's status if there was one, and whether another attempt cannot help."""
    if isinstance(error, HTTPError):
        error.close()
        return f"status {error.code}", error.code, error.code < 500 and error.code not in (408, 425, 429)
    cause = error.reason if isinstance(error, URLError) else error
    if isinstance(cause, SSLCertVerificationError):
        own = "If an authority of your own has signed its certificate, name that one's file: SSL_CERT_FILE="
        return f"{str(cause)[:200]}. {own}", None, True
    final = isinstance(cause, ValueError | http.client.InvalidURL)
    # The text of other errors of the protocol is the server's.
    quoted = final or not isinstance(cause, http.client.HTTPException) or isinstance(cause, ConnectionError)
    return (str(cause)[:200] if quoted else "") or type(cause).__name__, None, final


def _one_answer(
    url: str, out: BinaryIO, most_bytes: int, deadline: float, *, exact: bool, resume: bool, title: str
) -> Message:
    """One request for what is missing. Raises the network's errors, also if the answer ends early."""
    have = out.tell() if resume else 0
    try:
        with _opened(url, have, deadline - time.monotonic()) as answer:
            if answer.status != 206:
                have = 0
            elif not (answered := answer.headers.get("Content-Range", "")).startswith(f"bytes {have}-"):
                raise ConnectionError(f"asked for bytes from {have:,}, got {answered!r}")
            out.seek(have)
            out.truncate()
            # The standard library reads the length; without one, the body ends with the connection.
            total = None if answer.length is None else have + answer.length
            if total is not None and (total > most_bytes or (exact and total < most_bytes)):
                raise LengthError(url, total, announced=True)
            shown = progress(title, (total or have) / 1e6, "MB", initial=have / 1e6) if title else nullcontext()
            with shown as bar:
                while block := answer.read1(_BLOCK_BYTES):
                    have += len(block)
                    if have > most_bytes:
                        raise LengthError(url, have, announced=False)
                    _keep(url, out, block)
                    if bar is not None:
                        bar.update(have / 1e6)
            expected = most_bytes if exact else total
            if expected is not None and have < expected:
                raise ConnectionError(f"the connection was cut at {have:,} of {expected:,} bytes")
            return answer.headers
    except HTTPError as error:
        # Range not satisfiable: all of it is here, or more than all.
        if error.code != 416 or not have:
            raise
        error.close()
        if error.headers.get("Content-Range") == f"bytes */{have}" and not (exact and have < most_bytes):
            return error.headers
        out.seek(0)
        out.truncate()
        raise ConnectionError(f"the server has fewer than the {have:,} bytes here; starting over") from error


def _keep(url: str, out: BinaryIO, block: bytes) -> None:
    try:
        out.write(block)
        out.flush()
    except OSError as error:  # must not look like a fault of the network
        raise FetchError(url, f"it cannot be written: {error.strerror}; mend that, run the command again") from error


@contextmanager
def _opened(url: str, start: int, seconds: float, method: str = "GET") -> Iterator[http.client.HTTPResponse]:
    """The answer to a request for the bytes from `start` on; its connection is cut after `seconds`."""
    sockets: list[socket.socket] = []
    late = threading.Event()

    def cut() -> None:
        late.set()
        for each in sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    # A server that sends a byte now and then evades every limit on a single wait.
    timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), cut)
    timer.daemon = True
    timer.start()
    try:
        with _follow(_opener(sockets, late), url, start, min(STALL_SECONDS, max(seconds, 0.001)), method) as answer:
            yield answer
    except (OSError, http.client.HTTPException):
        if not late.is_set():
            raise
    finally:
        timer.cancel()
        for each in sockets:
            each.close()
    if late.is_set():
        # What was cut within its headers looks complete.
        raise TimeoutError("it did not come in time")


def _follow(
    opener: OpenerDirector, origin: str, start: int, stall_seconds: float, method: str
) -> http.client.HTTPResponse:
    """The answer at `origin`, or where it leads to: to https, or to what is served with `origin` itself."""
    url = origin
    for _ in range(_REDIRECTS + 1):
        request = Request(url, headers={"Range": f"bytes={start}-"} if start else {}, method=method)
        try:
            answer: http.client.HTTPResponse = opener.open(request, timeout=stall_seconds)
            return answer
        except HTTPError as error:
            target, status = error.headers.get("Location"), error.code
            if status not in (301, 302, 303, 307, 308) or not target:
                raise
            # The body, which may be endless, is not read.
            error.close()
        nowhere = "it leads on to where nothing is read"
        try:
            # Headers are decoded as Latin-1. Addresses have ASCII letters and no spaces.
            url = urljoin(url, quote(target, safe=string.punctuation, encoding="latin-1"))
            there, here = urlsplit(url), urlsplit(origin)
        except ValueError as error:
            raise FetchError(origin, f"{nowhere}: {error}", status) from None
        if "@" in there.netloc or (there.scheme != "https" and there[:2] != here[:2]):
            name = f"{there.scheme}://{there.netloc.rpartition('@')[2]}"[:200]
            raise FetchError(origin, f"{nowhere}: {name} is not https, or the address names a user", status)
    raise FetchError(origin, f"it leads on and on: more than {_REDIRECTS} redirects", status)


def _opener(sockets: list[socket.socket], late: threading.Event) -> OpenerDirector:
    """Opens http and https and nothing else, through the environment's proxy for https; sends nothing about the user.

    Puts a second handle of each connection into `sockets`, and makes none once it is `late`.
    """

    def connection(kind: Callable[..., Any], host: str, **options: Any) -> Any:
        made = kind(host, **options)

        def create(*arguments: Any, **named: Any) -> socket.socket:
            opened = socket.create_connection(*arguments, **named)
            sockets.append(socket.socket(fileno=os.dup(opened.fileno())))
            if late.is_set():
                opened.close()
                raise TimeoutError
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
