"""Timing: contestants that take turns, so that other load of the machine affects all; one alone; memory.

On a CPU with one thread (OMP_NUM_THREADS=1) the clock of turns is the process's own processor time, which other load
distorts far less than wall-clock time. It does not include child processes.
"""

import platform
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

Step = Callable[[], object]


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def take_turns(
    steps: Mapping[str, Step],
    device: torch.device,
    turns: int,
    *,
    warm_up: int,
    seconds: float = float("inf"),
    fewest: int = 1,
    steady: str = "",
) -> dict[str, list[float]]:
    """Seconds of each contestant's steps, turn by turn; each step is waited for. `warm_up` turns come before.

    After `fewest` turns a contestant that has used up `seconds` skips the rest, except the one called `steady`, with
    which the others are compared turn by turn.
    """
    clock = time.process_time if by_processor_time(device) else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(-warm_up, turns):
        for name, step in steps.items():
            if turn >= fewest and name != steady and sum(times[name]) > seconds:
                continue
            started = clock()
            step()
            wait_for(device)
            if turn >= 0:
                times[name].append(clock() - started)
    return times


def rate(step: Step, count: int, device: torch.device, seconds: float) -> float:
    """Items a second, by the wall clock, of a step that gets through `count` of them.

    Several steps are given to a GPU before it is waited for, as in the pipeline.
    """
    together = 4 if device.type == "cuda" else 1
    for _ in range(together):
        step()
    wait_for(device)
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for _ in range(together):
            step()
        wait_for(device)
        done += together * count
    return done / (time.perf_counter() - started)


def by_processor_time(device: torch.device) -> bool:
    """Whether the clock of turns is this process's processor time, not wall-clock time."""
    return device.type == "cpu" and torch.get_num_threads() == 1


def machine(device: torch.device) -> str:
    """Name of the device for a table's heading."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, " + (
        "1 thread, processor time" if by_processor_time(device) else f"{torch.get_num_threads()} threads"
    )


def own_memory_mib() -> int:
    """Resident memory of this process that is not shared."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("RssAnon"))


def matrix_products(weights: Iterable[Tensor], rows: int, device: torch.device, dtype: torch.dtype) -> Step:
    """A step with all matrix products of layers with these weights `[U, C]`; the operands are made in advance.

    Forward, and backward for weights and for inputs, except those of the first layer, which are features.
    """
    operands = []
    for layer, weight_UC in enumerate(each.to(device, dtype) for each in weights):
        x = torch.randn(rows, weight_UC.shape[1], device=device, dtype=dtype)
        operands.append((layer, x, weight_UC, torch.randn(rows, len(weight_UC), device=device, dtype=dtype)))

    def step() -> None:
        for _, x, weight_UC, _ in operands:
            functional.linear(x, weight_UC)
        for layer, x, weight_UC, gradient in reversed(operands):
            gradient.T @ x
            if layer > 0:
                gradient @ weight_UC

    return step
