"""Several runs at once, in worker processes that take one run after the other.

If a worker dies, the run it was training fails with the reason, and the other runs go on. Workers end when their parent
does.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TextIO

from cache.common.errors import MrrnError
from cache.common.interrupts import Interrupted, done_so_far, interruptible
from cache.common.progress import progress
from cache.common.workspace import Workspace
from train.config import RunConfig, is_another


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """What all runs of a sweep have in common."""

    workspace: Workspace
    device: str
    threads: int
    """CPU threads of each worker."""
    log: Path
    """File that takes the output of workers."""
    fresh: bool = False
    """Whether a folder that holds another run is emptied."""


@dataclass(frozen=True, kw_only=True)
class WorkerEvent:
    """What a worker reports about the run it trains."""

    share: float = 0.0
    """Share of the run that is done."""
    text: str = ""
    ended: bool = False
    error: str = ""
    """Why the run failed; empty if it did not."""


def train_all(configs: Sequence[RunConfig], settings: SweepSettings, jobs: int) -> list[str]:
    """Train the runs, `jobs` at once, with a line of progress. Returns which of them failed, and why."""
    settings.log.parent.mkdir(parents=True, exist_ok=True)
    _open_log(settings.log).close()  # what is refused here would end each worker
    shares = dict.fromkeys(range(len(configs)), 0.0)
    failed = []
    saved = done_so_far(
        lambda: f"{list(shares.values()).count(1.0)} of {len(configs)} runs are done, and those under way are saved"
    )
    with saved, progress("sweep", len(configs), "runs") as line:
        for number, event in run_in_workers(configs, settings, jobs):
            shares[number] = 1.0 if event.ended else event.share
            folder = configs[number].folder(settings.workspace)
            if event.error:
                failed.append(f"{folder}: {event.error}")
            line.update(sum(shares.values()), f"{folder.name}: {event.text or 'done'}")
    return failed


def run_in_workers(
    configs: Sequence[RunConfig], settings: SweepSettings, jobs: int
) -> Iterator[tuple[int, WorkerEvent]]:
    """Give each run to one of `jobs` workers. Yields events with the index of their run; its last one has `ended`."""
    waiting = deque(enumerate(configs))
    busy: dict[Any, tuple[BaseProcess, int]] = {}

    def hand_out(connection: Connection, process: BaseProcess) -> None:
        if not waiting:
            connection.close()
            return
        number, config = waiting.popleft()
        busy[connection] = process, number
        with suppress(BrokenPipeError, ConnectionResetError):  # it has died; `_receive` says so
            connection.send(config)

    try:
        for _ in range(min(jobs, len(configs))):
            hand_out(*_start(settings))
        while busy:
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                process, number = busy[connection]
                event = _receive(connection, process, settings.log)
                yield number, event
                if event.ended:
                    del busy[connection]
                    if process.is_alive():
                        hand_out(connection, process)
                    elif waiting:
                        hand_out(*_start(settings))
    finally:
        for process, _ in busy.values():
            process.terminate()
        for process, _ in busy.values():
            process.join()  # it saves its run first


def _start(settings: SweepSettings) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_worker, args=(theirs, settings), daemon=True)
    # A worker ignores Ctrl-C, which is for this process; this one stops it with SIGTERM.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    process.start()
    signal.signal(signal.SIGINT, before)
    theirs.close()
    return ours, process


def _receive(connection: Connection, process: BaseProcess, log: Path) -> WorkerEvent:
    try:
        return connection.recv()
    except (EOFError, ConnectionResetError):  # the latter if it had not read all that it was sent
        process.join()
        code = process.exitcode or 0
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return WorkerEvent(ended=True, error=f"the process that trained it ended with {how}; see {log}")


def _worker(connection: Connection, settings: SweepSettings) -> None:
    """Body of a worker process: trains the runs it is sent, until the parent closes the connection or dies."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.stdout = sys.stderr = _open_log(settings.log)
    import torch

    from train.distributed import choose_device

    torch.set_num_threads(settings.threads)
    device = choose_device(settings.device)
    while True:
        try:
            config: RunConfig = connection.recv()
        except EOFError:
            return
        try:
            with interruptible():
                event = _train(config, settings, device, connection)
        except Interrupted:
            return
        connection.send(event)


def _open_log(log: Path) -> TextIO:
    """Opens `log` to append. What others put there is neither followed (a link) nor waited for (a pipe)."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return os.fdopen(os.open(log, flags, 0o666), "a", buffering=1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


class _Reporter:
    """Progress of a run, sent to the parent."""

    def __init__(self, connection: Connection, total: float) -> None:
        self.connection, self.total = connection, total

    def update(self, done: float, text: str = "") -> None:
        self.connection.send(WorkerEvent(share=done / self.total, text=text))


def _train(config: RunConfig, settings: SweepSettings, device: Any, connection: Connection) -> WorkerEvent:
    from train.run import run
    from train.split import open_split

    @contextmanager
    def show(_title: str, total: float, _unit: str, *, initial: float = 0.0) -> Iterator[_Reporter]:
        yield _Reporter(connection, total)

    try:
        split = open_split(settings.workspace, config.dataset, config.split)
        fresh = settings.fresh and is_another(config.folder(settings.workspace), config)
        run(split, config, settings.workspace, device, show=show, fresh=fresh)
    except (MrrnError, OSError, MemoryError) as error:
        return WorkerEvent(ended=True, error=str(error) or repr(error))
    return WorkerEvent(share=1.0, ended=True)
