"""A web server for tests: it serves a folder, and misbehaves where it is told to."""

import contextlib
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

Mischief = Callable[[BaseHTTPRequestHandler, bytes], None]
"""Answers a request for a file that has this content."""


class Web:
    """A server on this machine."""

    def __init__(self, folder: Path, tls: ssl.SSLContext | None = None) -> None:
        self.folder = folder
        self.mischief: dict[str, Mischief] = {}
        """By the beginning of the file's path, with its first slash."""
        self.requests: list[tuple[str, dict[str, str]]] = []
        """Paths and headers."""
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                web.requests.append((self.path, dict(self.headers.items())))
                file = web.folder / self.path.lstrip("/")
                content = file.read_bytes() if file.is_file() else b""
                for start, mischief in web.mischief.items():
                    if self.path.startswith(start):
                        self.close_connection = True
                        with contextlib.suppress(OSError):
                            mischief(self, content)
                        return
                answer(self, content, 200 if file.is_file() else 404)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.address = f"http{'s' * bool(tls)}://127.0.0.1:{self._server.server_address[1]}"
        Thread(target=lambda: self._server.serve_forever(0.02), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def web_server(folder: Path, tls: ssl.SSLContext | None = None) -> Iterator[Web]:
    """Serves the folder for as long as it is needed."""
    web = Web(folder, tls)
    try:
        yield web
    finally:
        web.close()


def own_authority(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """The certificate of an authority made up here, and a server's context for 127.0.0.1 that it has signed."""
    key = "openssl req -x509 -days 2 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    key += " -addext keyUsage=critical,digitalSignature,keyCertSign"  # without it Python 3.13 trusts no authority
    signed = "-CA ca.pem -CAkey ca.key -addext subjectAltName=IP:127.0.0.1"
    for command in (
        f"{key} -keyout ca.key -out ca.pem -subj /CN=own",
        f"{key} {signed} -keyout server.key -out server.pem -subj /CN=server",
    ):
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    return folder / "ca.pem", context


def answer(
    asked: BaseHTTPRequestHandler, content: bytes, status: int = 200, length: int | None = None, **headers: str
) -> None:
    """A whole answer; `length` is what the header says, negative for none."""
    asked.send_response_only(status)
    if length is None or length >= 0:
        asked.send_header("Content-Length", str(len(content) if length is None else length))
    for name, value in headers.items():
        asked.send_header(name.replace("_", "-"), value)
    asked.end_headers()
    asked.wfile.write(content)


def redirected(to: str) -> Mischief:
    """To another address."""
    return lambda asked, _: answer(asked, b"", 302, Location=to)


def flipped(asked: BaseHTTPRequestHandler, content: bytes) -> None:
    """One bit is wrong."""
    middle = len(content) // 2
    answer(asked, content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


def cut_with_ranges(asked: BaseHTTPRequestHandler, content: bytes) -> None:
    """A third of the file at a time."""
    start = int((asked.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
    left = content[start:]
    asked.send_response_only(206 if start else 200)
    asked.send_header("Content-Length", str(len(left)))
    if start:
        asked.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    asked.end_headers()
    asked.wfile.write(left[: len(content) // 3 + 1])


def stalled(asked: BaseHTTPRequestHandler, content: bytes) -> None:
    """The beginning, then nothing."""
    asked.send_response_only(200)
    asked.send_header("Content-Length", str(len(content)))
    asked.end_headers()
    asked.wfile.write(content[:10])
    asked.wfile.flush()
    time.sleep(3)


def dripping(asked: BaseHTTPRequestHandler, _: bytes) -> None:
    """A header that never ends, a byte at a time."""
    asked.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    for _ in range(100):
        asked.wfile.write(b"x")
        asked.wfile.flush()
        time.sleep(0.03)


def endless(asked: BaseHTTPRequestHandler, content: bytes) -> None:
    """More and more, without a length."""
    asked.send_response_only(200)
    asked.end_headers()
    while True:
        asked.wfile.write(content or bytes(1 << 16))
