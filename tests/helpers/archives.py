"""Archives made for the tests, honest and hostile, and a web server on loopback that can misbehave."""

import binascii
import http.server
import re
import stat
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

FILE, FOLDER, LINK, FIFO = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o644


@dataclass(frozen=True)
class Entry:
    """A member of a RAR file; a link's content is its target."""

    name: str
    content: bytes = b""
    mode: int = FILE


def rar(*entries: Entry) -> bytes:
    """A RAR file (format 4, made on Unix) that stores its members uncompressed."""
    main = _block(0x73, 0, bytes(6))
    return b"Rar!\x1a\x07\x00" + main + b"".join(map(_file_block, entries)) + _block(0x7B, 0x4000, b"")


def _file_block(entry: Entry) -> bytes:
    name = entry.name.replace("/", "\\").encode()  # the format's separator, on every system
    size, checksum, date = len(entry.content), binascii.crc32(entry.content), 0x58210000
    unix, stored, version = 3, 0x30, 20
    fields = struct.pack("<IIBIIBBHI", size, size, unix, checksum, date, version, stored, len(name), entry.mode)
    flags = 0x8000 | (0xE0 if entry.mode == FOLDER else 0)
    return _block(0x74, flags, fields + name) + entry.content


def _block(kind: int, flags: int, rest: bytes) -> bytes:
    body = struct.pack("<BHH", kind, flags, 7 + len(rest)) + rest
    return struct.pack("<H", binascii.crc32(body) & 0xFFFF) + body


@dataclass
class Site:
    """The server's files and behaviour; `log` lists the requests it got."""

    files: dict[str, bytes]
    ranges: bool = True
    """Whether it supports range requests."""
    cut_after: int | None = None
    """Bytes after which it closes each connection."""
    says_length: bool = True
    statuses: list[int] = field(default_factory=list)
    """Statuses of its answers to the first requests, before it behaves."""
    wrong_start: int = 0
    """Offset by which the ranges that it sends are wrong."""
    url: str = ""
    log: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and Range of each request."""


@contextmanager
def serve(site: Site) -> Iterator[Site]:
    """Serve `site` on loopback while the block runs."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            site.log.append((self.path, self.headers.get("Range")))
            if site.statuses:
                self.send_error(site.statuses.pop(0))
            elif self.path.lstrip("/") not in site.files:
                self.send_error(404)
            else:
                _answer(self, site, site.files[self.path.lstrip("/")])

        def log_message(self, *_arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _answer(handler: http.server.BaseHTTPRequestHandler, site: Site, content: bytes) -> None:
    wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", "")) if site.ranges else None
    start = int(wanted[1]) if wanted else 0
    if wanted and start >= len(content):
        handler.send_response(416)
        handler.send_header("Content-Range", f"bytes */{len(content)}")
        handler.end_headers()
        return
    handler.send_response(206 if wanted else 200)
    if wanted:
        first = start + site.wrong_start
        handler.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
    if site.says_length:
        handler.send_header("Content-Length", str(len(content) - start))
    handler.end_headers()
    stop = len(content) if site.cut_after is None else start + site.cut_after
    handler.wfile.write(content[start:stop])
