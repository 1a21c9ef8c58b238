"""Object stores for tests: one in memory, moto's S3 server on loopback, and a proxy before it that fails on purpose."""

import collections
import contextlib
import http.client
import importlib.util
import itertools
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cache.remote import client
from cache.remote.client import Location
from cache.shards import writer as writing

SECRET = "wJalrXUtnFEMI-do-not-show-this"
LOCATION = Location("bucket", "caches/toy")


def need(*packages: str) -> None:
    """Skip the test where a package is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the package {package}")


def stores_in_memory(monkeypatch: pytest.MonkeyPatch) -> Any:
    """obstore's stores in memory instead of a server, one a location; what is at LOCATION is given.

    Shards are written by this process too: a child takes half a second to start, and has tests of its own.
    """
    need("obstore")
    from obstore.store import MemoryStore

    stores = collections.defaultdict(MemoryStore)
    monkeypatch.setattr(client, "open_store", lambda location, seconds: stores[location])
    monkeypatch.setattr(writing.ShardWriter, "write", lambda self, *what: writing.write_shard(*what))
    return stores[LOCATION]


def names(store: Any, prefix: str) -> list[str]:
    """Names of all objects below a prefix."""
    import obstore

    return sorted(row["path"] for page in obstore.list(store, prefix) for row in page)


def content(store: Any, name: str) -> bytes:
    """The bytes of an object."""
    import obstore

    return bytes(obstore.get(store, name).bytes())


def flip(store: Any, name: str) -> None:
    """Change one bit of an object."""
    import obstore

    bytes_ = bytearray(content(store, name))
    bytes_[len(bytes_) // 2] ^= 1
    obstore.put(store, name, bytes(bytes_))


def cut(store: Any, name: str) -> None:
    """Remove the last byte of an object."""
    import obstore

    obstore.put(store, name, content(store, name)[:-1])


def remove(store: Any, name: str) -> None:
    """Remove an object."""
    import obstore

    obstore.delete(store, name)


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


class S3Server:
    """moto's server, an own process, with one bucket."""

    def __init__(self, folder: Path) -> None:
        need("obstore", "moto", "flask")
        self.port = _free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self._log = (folder / "moto.log").open("wb")
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log)
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(urllib.request.Request(f"{self.endpoint}/bucket", method="PUT"), timeout=5)
                return
            assert self._process.poll() is None, (folder / "moto.log").read_text()
            assert time.monotonic() < deadline, "moto's server did not start"
            time.sleep(0.05)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._log.close()


def use(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Put credentials and the server's address into the environment, as users do."""
    for name, value in environment(endpoint).items():
        monkeypatch.setenv(name, value)


def environment(endpoint: str) -> dict[str, str]:
    """Variables that lead to a server."""
    return {
        "AWS_ACCESS_KEY_ID": "test-key-id",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
    }


class FaultyProxy:
    """Passes requests on to a server, and fails some: before they get there, or the answer on its way back."""

    def __init__(self, port: int, *, fail_every: int = 0) -> None:
        """`fail_every`: each so-many-th request; by turns refused with 500, cut before, and cut after it was done."""
        self._target, self._fail_every = port, fail_every
        self._numbers, self._kinds = itertools.count(1), itertools.cycle(("refused", "cut", "lost"))
        self._stopped_until = 0.0
        self.requests: list[tuple[str, str]] = []
        """Method and path of all requests."""
        self.failures = 0
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass(self) -> None:
                proxy._handle(self)

            do_GET = do_PUT = do_DELETE = do_HEAD = do_POST = _pass

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop_for(self, seconds: float) -> None:
        """Answer nothing for a while; requests hang."""
        self._stopped_until = time.monotonic() + seconds

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handle(self, asked: BaseHTTPRequestHandler) -> None:
        body = asked.rfile.read(int(asked.headers.get("Content-Length") or 0))
        while (wait := self._stopped_until - time.monotonic()) > 0:
            time.sleep(wait)
        self.requests.append((asked.command, asked.path))
        failure = ""
        if self._fail_every and next(self._numbers) % self._fail_every == 0:
            self.failures += 1
            failure = next(self._kinds)
        if failure == "cut":
            asked.close_connection = True
            asked.connection.shutdown(socket.SHUT_RDWR)
            return
        if failure == "refused":
            # As careless servers do: the request quoted in the answer.
            self._answer(
                asked, 500, {}, f"<Error><Code>InternalError</Code><Message>{SECRET}</Message></Error>".encode()
            )
            return
        status, headers, content = self._forward(asked, body)
        if failure == "lost":
            asked.close_connection = True
            asked.connection.shutdown(socket.SHUT_RDWR)
            return
        self._answer(asked, status, headers, content)

    def _forward(self, asked: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._target, timeout=60)
        headers = {name: value for name, value in asked.headers.items() if name.lower() != "connection"}
        connection.request(asked.command, asked.path, body=body, headers=headers)
        answer = connection.getresponse()
        content = answer.read()
        kept = {k: v for k, v in answer.getheaders() if k.lower() not in ("connection", "transfer-encoding", "server")}
        connection.close()
        return answer.status, kept, content

    @staticmethod
    def _answer(asked: BaseHTTPRequestHandler, status: int, headers: dict[str, str], content: bytes) -> None:
        asked.send_response_only(status)
        for name, value in headers.items():
            if name.lower() != "content-length" or asked.command == "HEAD":
                asked.send_header(name, value)
        if asked.command != "HEAD":
            asked.send_header("Content-Length", str(len(content)))
        asked.end_headers()
        if asked.command != "HEAD":
            asked.wfile.write(content)


@contextlib.contextmanager
def faulty(server: S3Server, *, fail_every: int = 0) -> Iterator[FaultyProxy]:
    """A proxy before the server for as long as it is needed."""
    proxy = FaultyProxy(server.port, fail_every=fail_every)
    try:
        yield proxy
    finally:
        proxy.close()


def second_copy(cache: Path, target: Path) -> Path:
    """The same working copy at another place, as if on a machine whose disk was copied."""
    shutil.copytree(cache, target)
    return target


def python_environment(endpoint: str) -> dict[str, str]:
    """For a child that imports the project and its tests' helpers."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent)])
    return {**os.environ, **environment(endpoint), "PYTHONPATH": path}
