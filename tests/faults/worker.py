"""What faults happen to: a process that forks workers, and the extractions that these workers do."""

import json
import os
import random
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import h5py  # noqa: F401 (imported before the fork, so that workers need not)
import zarr  # noqa: F401

from cache import storage
from cache.common.errors import CacheError, LeaseLostError
from cache.common.files import replace_folder, write_bytes_durably
from cache.export import export
from cache.ledger import Outcome
from cache.processes import this_process
from cache.shards import writer as writing
from cache.shards import zarr as zarr_shards  # noqa: F401
from cache.store import FeatureCache
from tests.helpers.cache import done, make_cache, make_fingerprint, make_shard
from tests.helpers.replay import acknowledge, note_sites


class ForkedWriter:
    """The writing child as a fork of this process instead of a new interpreter: the same code, without the imports."""

    def __init__(self) -> None:
        requests_out, requests_in = os.pipe()
        answers_out, answers_in = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(requests_in)
            os.close(answers_out)
            try:
                writing.serve(os.fdopen(requests_out, "rb"), os.fdopen(answers_in, "wb"))
            finally:
                os._exit(0)
        os.close(requests_out)
        os.close(answers_in)
        self.stdin: IO[bytes] = os.fdopen(requests_in, "wb")
        self.stdout: IO[bytes] = os.fdopen(answers_out, "rb")
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None and os.waitpid(self.pid, os.WNOHANG)[0]:
            self.returncode = -1
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, 9)

    def communicate(self) -> None:
        self.stdout.close()
        try:
            self.stdin.close()
        finally:
            if self.returncode is None:
                os.waitpid(self.pid, 0)
                self.returncode = -1


def create(cache: str, backend: str, videos: int) -> int:
    """Make an empty cache."""
    make_cache(Path(cache), videos, backend=backend).close()
    return 0


def extract(cache: str, acknowledged: str, videos: int, commits: int = 1 << 40, lease: float = 600.0) -> int:
    """Extract until there is nothing left, `videos` a commit, and note what was acknowledged. 1 for expected errors."""
    try:
        with (
            FeatureCache.open_for_extraction(Path(cache), make_fingerprint()) as opened,
            Path(acknowledged).open("a") as notes,
        ):
            while commits and (claim := opened.ledger.claim(this_process(), videos, lease)):
                ids = [video.id for video in claim.videos]
                opened.commit(claim, make_shard(ids), done(ids), opened.fingerprint.environment)
                notes.write("".join(f"{video_id}\n" for video_id in ids))
                notes.flush()
                commits -= 1
    except CacheError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def command(stage: str, arguments: list[str], output: str) -> int:
    """Run `python -m STAGE` with these arguments; what it prints goes to the file `output`."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(descriptor, stream.fileno())
    try:
        import_module(f"{stage}.cli").main(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.stdout.flush()
    return 0


def create_acknowledged(cache: str, trace: str, backend: str, videos: int) -> int:
    """Make an empty cache, and note in the trace when it was there."""
    note_sites(Path(trace))
    create(cache, backend, videos)
    acknowledge(Path(trace), {"created": True})
    return 0


def extract_acknowledged(cache: str, trace: str, videos: int) -> int:
    """Extract all but the last video of each claim, which fails; note in the trace what was acknowledged when."""
    note_sites(Path(trace))
    with FeatureCache.open_for_extraction(Path(cache), make_fingerprint()) as opened:
        acknowledge(Path(trace), {"videos": opened.video_ids})
        while claim := opened.ledger.claim(this_process(), videos, 600.0):
            *ids, broken = (video.id for video in claim.videos)
            outcomes = [*done(ids), Outcome(video_id=broken, status="failed", reason="not a video")]
            opened.commit(claim, make_shard(ids), outcomes, opened.fingerprint.environment)
            acknowledge(Path(trace), {"videos": ids, "failed": [broken]})
    return 0


def hand_out_acknowledged(cache: str, features: str, folder: str, trace: str) -> int:
    """Export the cache to `features`, and replace `folder` as a bundle does; note in the trace when each was done."""
    note_sites(Path(trace))
    with FeatureCache.open(Path(cache)) as opened:
        export(opened, Path(features), "npz", "level")
    acknowledge(Path(trace), {"exported": True})
    temporary = Path(folder).with_name(".tmp-new")
    write_bytes_durably(temporary / "heads", b"new")
    replace_folder(Path(folder), temporary)
    acknowledge(Path(trace), {"replaced": True})
    return 0


def extract_and_die(cache: str, videos: int) -> int:
    """Die within the first commit, when the shard has its name and before that is safe."""
    storage.fsync_folder = lambda _: os._exit(9)
    return extract(cache, os.devnull, videos)


def compete(cache: str, log: str, seed: int, videos: int, lease: float, pause: float) -> int:
    """Extract as one of many, now and then asleep for longer than a lease lasts; note commits and refusals."""
    chance = random.Random(seed)
    with FeatureCache.open(Path(cache)) as opened, Path(log).open("a") as notes:
        while True:
            claim = opened.ledger.claim(f"worker-{seed}", videos, lease)
            if claim is None:
                if not opened.ledger.counts()["pending"]:
                    return 0
                time.sleep(lease / 4)
                continue
            ids = [video.id for video in claim.videos]
            data = make_shard(ids)
            if chance.random() < 0.05:
                time.sleep(pause)
            try:
                opened.commit(claim, data, done(ids), opened.fingerprint.environment)
                notes.write("".join(f"commit {video_id}\n" for video_id in ids))
            except LeaseLostError:
                notes.write(f"refused {ids[0]}\n")
            notes.flush()


def _child(function: str, arguments: dict[str, Any]) -> None:
    code = 70
    try:
        if not os.environ.get("REAL_WRITER"):
            writing._start_child = ForkedWriter  # type: ignore[assignment]
        code = globals()[function](**arguments)
    except BaseException:  # noqa: BLE001 (a forked child never returns into its parent's code)
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Take one question a line; answer with a number."""
    for module in sys.argv[1:]:
        import_module(module)
    for line in sys.stdin:
        question = json.loads(line)
        if "wait" in question:
            answer = os.waitstatus_to_exitcode(os.waitpid(question["wait"], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                _child(question["function"], question["arguments"])
        print(answer, flush=True)


if __name__ == "__main__":
    main()
