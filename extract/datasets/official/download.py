"""Downloads one archive over HTTPS: continued where it was cut, and checked by its SHA-256."""

import fcntl
import hashlib
import http.client
import os
import re
import shutil
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from cache.common.errors import DatasetError
from cache.common.files import fsync_folder
from cache.common.progress import progress

BLOCK_BYTES = 1 << 20
LARGEST_BYTES = 16 << 30
"""No archive has more: UCF-101's, the largest, has 7 GB. A server that sends on and on fills no disk."""

TIMEOUT_SECONDS = 60.0
"""A connection that brings no byte for this long counts as cut."""


@dataclass(frozen=True)
class Archive:
    """A file to download."""

    url: str
    sha256: str

    @property
    def name(self) -> str:
        """Its file name: the last part of the address."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True, kw_only=True)
class DownloadRetries:
    """How often a download that was cut is continued."""

    attempts: int = 5
    """Attempts in a row that may bring nothing before the download fails."""
    pause_seconds: float = 2.0
    """Pause before the second attempt; doubled before each further one."""


def fetch(archive: Archive, folder: Path, retries: DownloadRetries = DownloadRetries()) -> Path:
    """The archive's file in `folder`, downloaded unless it is there; its SHA-256 is checked either way.

    An incomplete download is kept as `<name>.part`, and the next call continues it. Raises DatasetError if the download
    fails, or the SHA-256 differs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / archive.name
    if not file.exists():
        part = folder / f"{archive.name}.part"
        with part.open("ab") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DatasetError(f"another process is fetching {part}; wait for it, or stop it") from None
            _fill(archive, part, file, retries)
            _check(archive, part, "what came is deleted; run the command again", delete=True)
            part.rename(file)
            fsync_folder(folder)
    else:
        _check(archive, file, "delete it, or put the published archive there, and run the command again")
    return file


def _fill(archive: Archive, part: Path, file: Path, retries: DownloadRetries) -> None:
    """Append to `part` until the server has nothing more. Raises DatasetError after too many failures."""
    failures, pause = 0, retries.pause_seconds
    while True:
        before = part.stat().st_size
        try:
            _continue(archive, part)
            return
        except (OSError, http.client.HTTPException) as error:
            came = part.stat().st_size - before
            failures = 0 if came > 0 else failures + 1
            if failures >= retries.attempts or is_final(error):
                raise DatasetError(
                    f"{archive.url} cannot be fetched: {error}. {part.stat().st_size:,} bytes are here; run the "
                    f"command again to go on, or get {archive.name} any other way and put it at {file} (its SHA-256 is "
                    f"{archive.sha256})"
                ) from error
        time.sleep(pause if failures else 0)
        pause = pause * 2 if failures else retries.pause_seconds


def is_final(error: Exception) -> bool:
    """Whether another attempt cannot help: the server does not have the file, or cannot prove its identity."""
    if isinstance(error, HTTPError):
        return 400 <= error.code < 500 and error.code not in (408, 429)
    return isinstance(error, URLError) and isinstance(error.reason, ssl.SSLCertVerificationError)


def _continue(archive: Archive, part: Path) -> None:
    """One request for the missing bytes. Raises the network's errors, and ConnectionError if the answer ends early."""
    have = part.stat().st_size
    request = Request(archive.url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urlopen(request, timeout=TIMEOUT_SECONDS)
    except HTTPError as error:
        if error.code != 416:  # range not satisfiable
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return
        os.truncate(part, 0)
        raise ConnectionError(f"the server has fewer than the {have:,} bytes here; starting over") from error
    with response, part.open("ab") as out:
        if response.status != 206:  # the server ignores the range and sends everything
            os.truncate(part, 0)
            have = 0
        elif not (answered := response.headers.get("Content-Range", "")).startswith(f"bytes {have}-"):
            raise ConnectionError(f"asked for bytes from {have:,}, got {answered!r}")
        _copy(response, out, archive.name, have)


def content_length(response: http.client.HTTPResponse) -> int | None:
    """Bytes of the answer's body as its header says; None if that does not say so."""
    length = response.headers.get("Content-Length", "")
    return int(length) if re.fullmatch("[0-9]{1,18}", length) else None


def _copy(response: http.client.HTTPResponse, out: BinaryIO, name: str, have: int) -> None:
    """Append the answer's body to the `have` bytes that are there."""
    length = content_length(response)
    total = None if length is None else have + length
    free = shutil.disk_usage(folder := Path(out.name).parent).free
    if total is not None and total > LARGEST_BYTES:
        raise DatasetError(f"{name}: {total:,} bytes are announced; no published archive has {LARGEST_BYTES >> 30} GiB")
    if length is not None and length > free:
        raise DatasetError(f"{length / 1e9:.1f} GB are to come, {folder} has room for {free / 1e9:.1f} GB; make room")
    with progress(name, (total or have) / 1e6, "MB", initial=have / 1e6) as shown:
        while block := response.read(BLOCK_BYTES):
            try:
                out.write(block)
                out.flush()
            except OSError as error:  # must not look like a fault of the network
                what = f"{out.name} cannot be written: {error.strerror}; mend that, run the command again"
                raise DatasetError(what) from error
            have += len(block)
            if have > LARGEST_BYTES:
                out.truncate(0)
                raise DatasetError(
                    f"{name}: the server sent more than {LARGEST_BYTES >> 30} GiB, which no published archive has; "
                    "what came is deleted. Look at the address, or get the archive any other way"
                )
            shown.update(have / 1e6)
    os.fsync(out.fileno())
    if total is not None and have < total:
        raise ConnectionError(f"the connection was cut at {have:,} of {total:,} bytes")


def _check(archive: Archive, file: Path, advice: str, *, delete: bool = False) -> None:
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != archive.sha256:
        size = file.stat().st_size
        if delete:
            file.unlink()
        raise DatasetError(
            f"{file} ({size:,} bytes) has SHA-256 {found}; {archive.name} as published has {archive.sha256}: {advice}"
        )
