"""Several runs at once, each in a process of its own that takes one run after the other.

A worker that dies costs the run it was at, which is named; the others go on. Workers end when their parent does.
"""

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from cache.common.errors import MrrnError
from cache.common.workspace import Workspace
from train.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Task:
    """One run to bring to its end."""

    number: int
    config: RunConfig


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What all runs of a sweep have in common."""

    workspace: Workspace
    device: str
    threads: int
    """CPU threads of each worker."""
    log: Path
    """Where workers write what they would print."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """What a worker has to say about a task."""

    number: int
    share: float = 0.0
    """Share of the run that is done."""
    text: str = ""
    ended: bool = False
    error: str = ""
    """Why the run failed; empty where it did not."""


def work_off(tasks: Sequence[Task], surroundings: Surroundings, jobs: int) -> Iterator[Event]:
    """Give each task to one of `jobs` workers; events come as they happen, one with `ended` for every task."""
    waiting = list(reversed(tasks))
    busy: dict[Any, tuple[BaseProcess, Task]] = {}
    try:
        for _ in range(min(jobs, len(tasks))):
            _hand_out(*_start(surroundings), waiting, busy)
        while busy:
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                process, task = busy[ready]
                event = _receive(ready, process, task, surroundings.log)
                yield event
                if event.ended:
                    del busy[ready]
                    if process.is_alive():
                        _hand_out(ready, process, waiting, busy)
                    elif waiting:
                        _hand_out(*_start(surroundings), waiting, busy)
    finally:
        for process, _ in busy.values():
            process.terminate()


def _start(surroundings: Surroundings) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_worker, args=(theirs, surroundings), daemon=True)
    process.start()
    theirs.close()
    return ours, process


def _hand_out(
    connection: Connection, process: BaseProcess, waiting: list[Task], busy: dict[Any, tuple[BaseProcess, Task]]
) -> None:
    if waiting:
        busy[connection] = process, waiting.pop()
        connection.send(busy[connection][1])
    else:
        connection.close()


def _receive(connection: Connection, process: BaseProcess, task: Task, log: Path) -> Event:
    try:
        event: Event = connection.recv()
        return event
    except EOFError:
        process.join()
        code = process.exitcode or 0
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return Event(number=task.number, ended=True, error=f"the process that trained it ended with {how}; see {log}")


def _worker(connection: Connection, surroundings: Surroundings) -> None:
    """Body of a worker process: runs until the parent closes the connection, or dies."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    surroundings.log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout = sys.stderr = surroundings.log.open("a", buffering=1)
    import torch

    from train.distributed import choose_device

    torch.set_num_threads(surroundings.threads)
    device = choose_device(surroundings.device)
    while True:
        try:
            task: Task = connection.recv()
        except EOFError:
            return
        connection.send(_run(task, surroundings, device, connection))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _run(task: Task, surroundings: Surroundings, device: Any, connection: Connection) -> Event:
    from train.run import run
    from train.split import open_split

    config = task.config

    class Reporter:
        """Sends progress to the parent."""

        def __init__(self, total: float) -> None:
            self.total = total

        def update(self, done: float, text: str = "") -> None:
            connection.send(Event(number=task.number, share=done / self.total, text=text))

    @contextmanager
    def show(_title: str, total: float, _unit: str, *, initial: float = 0.0) -> Iterator[Reporter]:
        yield Reporter(total)

    try:
        split = open_split(surroundings.workspace, config.dataset, config.split)
        run(split, config, surroundings.workspace, device, show=show)
    except MrrnError as error:
        return Event(number=task.number, ended=True, error=str(error))
    return Event(number=task.number, share=1.0, ended=True)
