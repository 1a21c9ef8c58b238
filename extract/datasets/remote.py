"""Remote videos, `https://…` and `s3://…`: each is downloaded to a temporary file, which is kept while it is decoded.

Only a manifest can name such videos, and only if the user allows it (--allow-remote). An address is passed around as a
Path, which turns its two slashes into one; `address_of` restores it.
"""

import re
import shutil
import tempfile
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from email.message import Message
from email.utils import parsedate_to_datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit

import xxhash

from cache.common.errors import CacheError, DecodeError, MrrnError
from cache.common.progress import progress
from cache.dataset import ADDRESS
from cache.ledger import FileState, Outcome
from cache.remote import https
from cache.remote.client import Location, Objects, RetryPolicy
from extract.decode import DecodePool, FrameBlock, Limits, VideoEnd

if TYPE_CHECKING:
    from obstore import ObjectMeta

FETCHES_PER_WORKER: Final = 2
"""Downloads at a time, for each decode worker."""

_ASKED_AT_A_TIME, _ASK_SECONDS = 16, 10.0
"""Videos whose servers are asked for their state at a time; how long an answer may take."""

_MOST_NS = (1 << 63) - 1

_RESERVE_BYTES = 1 << 30
"""Left free on the disk of temporary files."""


def address_of(path: Path) -> str | None:
    """The address that `path` stands for; None if it is a local file."""
    scheme, colon, rest = str(path).partition(":/")
    address = f"{scheme}{colon}/{rest}"
    return address if ADDRESS.fullmatch(address) else None


def decode_with_downloads(
    pool: DecodePool, videos: Iterable[tuple[str, Path]]
) -> Generator[FrameBlock | VideoEnd, None, None]:
    """As `pool.decode(videos)`, also for remote videos. One that cannot be downloaded ends as failed, with the reason.

    Remote videos are decoded in the order in which they arrive.
    """
    fetcher = _Fetcher(pool.settings.limits, FETCHES_PER_WORKER * pool.settings.workers)
    stream = pool.decode(fetcher.local(videos))
    try:
        for item in stream:
            if isinstance(item, VideoEnd) and (state := fetcher.discard(item.outcome.video_id)):
                item = VideoEnd(replace(item.outcome, file=state))
            yield item
            yield from fetcher.take_failed()
        yield from fetcher.take_failed()
    finally:
        stream.close()
        fetcher.close()


class _Fetcher:
    """Downloads ahead of the decoders, and owns the temporary files."""

    def __init__(self, limits: Limits, at_a_time: int) -> None:
        self._limits, self._at_a_time = limits, at_a_time
        self._threads: ThreadPoolExecutor | None = None
        self._folder: Path | None = None
        self._names = count()
        self._files: dict[str, tuple[Path, FileState]] = {}
        self._failed: list[VideoEnd] = []

    def local(self, videos: Iterable[tuple[str, Path]]) -> Iterator[tuple[str, Path]]:
        """The same videos as local files, in the order in which they arrive."""
        under_way: dict[Future[tuple[Path, FileState]], str] = {}
        for video_id, path in videos:
            address = address_of(path)
            if address is None:
                yield video_id, path
                continue
            under_way[self._begin(address)] = video_id
            if len(under_way) >= self._at_a_time:
                yield from self._arrived(under_way)
        while under_way:
            yield from self._arrived(under_way)

    def _begin(self, address: str) -> Future[tuple[Path, FileState]]:
        if self._threads is None or self._folder is None:
            self._threads = ThreadPoolExecutor(self._at_a_time, thread_name_prefix="fetch")
            self._folder = Path(tempfile.mkdtemp(prefix="mrrn-videos-"))
        target = self._folder / f"{next(self._names)}{Path(address).suffix}"
        return self._threads.submit(lambda: (target, fetch_video(address, target, self._limits)))

    def _arrived(self, under_way: dict[Future[tuple[Path, FileState]], str]) -> Iterator[tuple[str, Path]]:
        """Waits until a download ends; yields those that succeeded. Ended ones are removed from `under_way`."""
        for future in wait(under_way, return_when=FIRST_COMPLETED).done:
            video_id = under_way.pop(future)
            try:
                self._files[video_id] = future.result()
            except MrrnError as error:
                self._failed.append(VideoEnd(Outcome(video_id=video_id, status="failed", reason=str(error))))
            else:
                yield video_id, self._files[video_id][0]

    def take_failed(self) -> list[VideoEnd]:
        """The ends of videos that could not be downloaded, since the last call."""
        failed, self._failed = self._failed, []
        return failed

    def discard(self, video_id: str) -> FileState | None:
        """Remove the video's temporary file. Returns what its server said of it; None if it was not fetched."""
        path, state = self._files.pop(video_id, (None, None))
        if path is not None:
            path.unlink(missing_ok=True)
        return state

    def close(self) -> None:
        """Cancel the downloads, and remove all files."""
        if self._threads is not None and self._folder is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            shutil.rmtree(self._folder, ignore_errors=True)


def fetch_video(address: str, target: Path, limits: Limits) -> FileState:
    """Download the video at `address` to the new file `target`; returns what the server says of it.

    Raises DecodeError, with the reason, if that fails.
    """
    room = shutil.disk_usage(target.parent).free - _RESERVE_BYTES
    most_bytes = min(limits.file_bytes, max(room, 0))
    try:
        if address.startswith("s3://"):
            return _from_store(address, target, most_bytes, limits.fetch_seconds)
        return _from_web(address, target, most_bytes, limits.fetch_seconds)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def same_file(before: FileState, now: FileState) -> bool:
    """Whether a server's two accounts can be of one file: by size, and by tag, or by time where one has no tag.

    What one of them does not say is not compared.
    """
    if before.size and now.size and before.size != now.size:
        return False
    if before.hash and now.hash:
        return before.hash == now.hash
    return not (before.modified_ns and now.modified_ns) or before.modified_ns == now.modified_ns


def ask_servers(addresses: Mapping[str, str]) -> tuple[dict[str, FileState], dict[str, str]]:
    """What servers say now of videos (id -> address), without a byte of them; and why others could not be asked.

    A server that does not answer once is not asked again.
    """
    states: dict[str, FileState] = {}
    problems: dict[str, str] = {}
    silent: dict[str, str] = {}
    buckets: dict[str, Objects] = {}

    def ask(address: str) -> FileState | str:
        server = urlsplit(address).netloc
        if problem := silent.get(server):
            return problem
        try:
            if not address.startswith("s3://"):
                headers = https.ask(_quoted(address), _ASK_SECONDS)
                length = headers.get("Content-Length", "")
                return _web_state(headers, int(length) if re.fullmatch("[0-9]{1,18}", length) else 0)
            if server not in buckets:
                buckets[server] = Objects(Location(server, ""), RetryPolicy(seconds=_ASK_SECONDS))
            return _store_state(buckets[server].head(address.removeprefix(f"s3://{server}/")))
        except FileNotFoundError:
            return "it is not there"
        except https.FetchError as error:
            problem, answered = error.reason, error.status is not None
        except MrrnError as error:
            problem, answered = str(error)[:200], False
        if not answered:
            silent[server] = problem
        return problem

    with (
        progress("asking servers", len(addresses), "videos") as shown,
        ThreadPoolExecutor(_ASKED_AT_A_TIME, thread_name_prefix="ask") as threads,
    ):
        for done, (video_id, answer) in enumerate(zip(addresses, threads.map(ask, addresses.values()), strict=True), 1):
            if isinstance(answer, str):
                problems[video_id] = answer
            else:
                states[video_id] = answer
            shown.update(done)
    return states, problems


def _web_state(headers: Message, num_bytes: int) -> FileState:
    try:
        modified = parsedate_to_datetime(headers.get("Last-Modified", "")).timestamp()
    except (ValueError, OverflowError):
        modified = 0.0
    return _state(num_bytes, modified, headers.get("ETag", "").strip().removeprefix("W/"))


def _store_state(found: "ObjectMeta") -> FileState:
    return _state(int(found["size"]), found["last_modified"].timestamp(), found["e_tag"] or "")


def _state(num_bytes: int, modified_seconds: float, tag: str) -> FileState:
    """`num_bytes` and `modified_seconds` are 0 if the server does not say them. Its tag may be long: it is hashed."""
    modified_ns = round(modified_seconds) * 10**9
    return FileState(
        size=num_bytes,
        modified_ns=modified_ns if abs(modified_ns) <= _MOST_NS else 0,
        hash=xxhash.xxh3_128_hexdigest(tag.encode(errors="surrogateescape")) if tag else "",
    )


def _from_store(address: str, target: Path, most_bytes: int, seconds: float) -> FileState:
    bucket, _, key = address.removeprefix("s3://").partition("/")

    def check(num_bytes: int) -> None:
        if num_bytes > most_bytes:
            raise _size_error(address, f"{num_bytes:,} bytes", most_bytes)

    try:
        objects = Objects(Location(bucket, ""), RetryPolicy(seconds=seconds))
        return _store_state(objects.fetch(key, target, check, time.monotonic() + seconds))
    except CacheError as error:
        raise DecodeError(f"{address} cannot be fetched: {error}") from error


def _from_web(address: str, target: Path, most_bytes: int, seconds: float) -> FileState:
    deadline = time.monotonic() + seconds
    with target.open("wb") as out:
        try:
            headers = https.fetch(_quoted(address), out, most_bytes, seconds=seconds)
        except https.LengthError as error:
            raise _size_error(address, error.found, most_bytes) from error
        except https.FetchError as error:
            late = f", {out.tell():,} bytes came (--limit fetch_seconds=…)" if time.monotonic() >= deadline else ""
            raise DecodeError(f"{address} cannot be fetched: {error.reason}{late}") from error
        return _web_state(headers, out.tell())


def _quoted(address: str) -> str:
    return quote(address, safe=":/%")


def _size_error(address: str, found: str, most_bytes: int) -> DecodeError:
    return DecodeError(
        f"{address} has {found}; {most_bytes:,} are allowed and have room (--limit file_bytes=…, TMPDIR)"
    )
