"""Timing in turns: contestants take one step each, round after round, so that other load of the machine affects all.

On a CPU with one thread (OMP_NUM_THREADS=1) the clock is the process's own processor time, which other load distorts
far less than wall-clock time. It does not include child processes.
"""

import platform
import time
from collections.abc import Callable, Mapping

import torch

Step = Callable[[], object]


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
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn >= 0:
                times[name].append(clock() - started)
    return times


def by_processor_time(device: torch.device) -> bool:
    """Whether the clock is this process's processor time, not wall-clock time."""
    return device.type == "cpu" and torch.get_num_threads() == 1


def machine(device: torch.device) -> str:
    """Name of the device for a table's heading."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, " + (
        "1 thread, processor time" if by_processor_time(device) else f"{torch.get_num_threads()} threads"
    )
