"""Write a shard in a child process, so that a library that crashes on a full disk costs an error and not the run.

The child is `python -m cache.shards.writer`: it takes shards on its standard input, writes each one durably and
answers with a line of JSON. It imports neither torch nor the caller's program, and ends when its input does.
"""

import contextlib
import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from cache.common.errors import CacheError
from cache.common.files import open_plain, out_of_memory, plain_files, write_tree_durably
from cache.shards import Backend, encode, open_shard
from cache.shards.protocol import ShardData

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Written:
    """Hash and size of a written shard."""

    digest: str
    """Hex over all bytes of its files, see `hash_files`."""
    num_bytes: int


def write_shard(path: Path, backend: Backend, data: ShardData) -> Written:
    """Write a new shard at `path`, durably. Raises `OSError` if the system refuses.

    The shard is read back and hashed, and its index compared with the data, before this returns.
    """
    write_tree_durably(path, encode(backend, data))
    written = hash_files(path)
    if open_shard(path, backend).index.content != data.index.content:
        raise CacheError(f"shard {path} reads back differently from what was written; the disk or memory is failing")
    return written


def hash_files(path: Path) -> Written:
    """xxh3_128 over the names, lengths and bytes of the file or folder at `path`; links are not followed."""
    digest = xxhash.xxh3_128()
    total = 0
    for file in sorted(plain_files(path)):
        with os.fdopen(open_plain(file), "rb", buffering=0) as opened:
            num_bytes = os.fstat(opened.fileno()).st_size
            digest.update(f"{file.relative_to(path)}\0{num_bytes}\0".encode())
            while block := opened.read(_BLOCK_BYTES):
                digest.update(block)
        total += num_bytes
    return Written(digest=digest.hexdigest(), num_bytes=total)


class ShardWriter:
    """Writes shards in one child process, which is started when first needed and after it died. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def write(self, path: Path, backend: Backend, data: ShardData) -> Written:
        """As `write_shard`. Raises `OSError` if the system refused and `CacheError` if the child died."""
        with self._lock:
            if self._child is not None and self._child.poll() is not None:
                self._end(kill=True)
            child = self._child = self._child or _start_child()
            assert child.stdin is not None
            assert child.stdout is not None
            try:
                _send(child.stdin, path, backend, data)
                answer = child.stdout.readline()
            except BrokenPipeError:
                answer = b""
            except BaseException:
                # Interrupted in the middle of a message: the child's next answer could not be understood.
                self._end(kill=True)
                raise
            if not answer.endswith(b"\n"):
                status = self._end(kill=True)
                raise CacheError(
                    f"the process that writes shards died (exit status {status}) while writing {path}; "
                    "nothing was lost. Look for a full disk or too little memory, then run the same command again"
                )
        match json.loads(answer):
            case {"errno": number}:
                raise OSError(number, os.strerror(number), str(path))
            case {"error": text}:
                raise CacheError(text)
            case written:
                return Written(**written)

    def close(self) -> None:
        """Let the child end."""
        with self._lock:
            self._end(kill=False)

    def _end(self, *, kill: bool) -> int | None:
        child, self._child = self._child, None
        if child is None:
            return None
        if kill:
            child.kill()
        with contextlib.suppress(BrokenPipeError):
            child.communicate()
        return child.returncode


def _start_child() -> "subprocess.Popen[bytes]":
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    # -P keeps the caller's working directory out of the child's imports.
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "cache.shards.writer"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
        # Ctrl-C goes to the caller, which decides what becomes of the current shard.
        start_new_session=True,
    )


def _send(stream: IO[bytes], path: Path, backend: Backend, data: ShardData) -> None:
    arrays: dict[str, NDArray[Any]] = {"offsets": data.offsets, "pts_seconds": data.pts_seconds}
    arrays.update(data.features.items())
    header = {
        "path": str(path.resolve()),
        "backend": backend,
        "video_ids": data.video_ids,
        "notes": data.notes,
        "content": data.index.content,
        "arrays": {name: [array.dtype.str, array.shape] for name, array in arrays.items()},
    }
    text = json.dumps(header).encode()
    stream.write(len(text).to_bytes(8, "little") + text)
    for array in arrays.values():
        stream.write(np.ascontiguousarray(array).data.cast("B"))
    stream.flush()


def _received(stream: IO[bytes]) -> Iterable[tuple[Path, Backend, ShardData]]:
    while length := stream.read(8):
        header = json.loads(_read_exactly(stream, int.from_bytes(length, "little")))
        arrays: dict[Any, NDArray[Any]] = {}
        for name, (dtype, shape) in header["arrays"].items():
            num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
            arrays[name] = np.frombuffer(_read_exactly(stream, num_bytes), dtype=dtype).reshape(shape)
        data = ShardData(
            video_ids=tuple(header["video_ids"]),
            offsets=arrays.pop("offsets"),
            pts_seconds=arrays.pop("pts_seconds"),
            features=arrays,
            notes=header["notes"],
        )
        assert data.index.content == header["content"], "the pipe between two processes changed what went through it"
        yield Path(header["path"]), header["backend"], data


def _read_exactly(stream: IO[bytes], num_bytes: int) -> bytes:
    content = stream.read(num_bytes)
    if len(content) != num_bytes:
        # The caller was killed in the middle of a message; the next extraction clears away the half-written shard.
        sys.exit(0)
    return content


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Write shards until there are no more requests."""
    for path, backend, data in _received(requests):
        answer: dict[str, Any]
        try:
            answer = asdict(write_shard(path, backend, data))
        except OSError as error:
            if error.errno is None:
                raise
            answer = {"errno": error.errno}
        except CacheError as error:
            answer = {"error": str(error)}
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            answer = {"errno": errno.ENOMEM}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
