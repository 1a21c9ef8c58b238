"""Break one command at each of its system calls, then give the same command again: it has to succeed.

    prepare(place)  ->  the command, broken at call n  ->  broken(place)  ->  the same command  ->  finished(place)

Calls are those below the folder `place` that the shim (faults/shim.c) sees. `FAULTS_AT=kill:17` tries this one alone.
"""

import errno
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.helpers.faults import Control, replayed_by, serving

FAULTS: Final[Mapping[str, int]] = {
    "kill": 0,
    "full": errno.ENOSPC,
    "failing": errno.EIO,
    "denied": errno.EACCES,
}
"""Errors by which a call is refused; 0 kills the process that makes it."""

FOR_LONG: Final = 1 << 40
"""Calls after the refused one that are refused too: all. A disk stays full until somebody frees space."""


def break_each_call(
    folder: Path,
    stage: str,
    prepare: Callable[[Path], Sequence[object]],
    finished: Callable[[Path], None],
    *,
    broken: Callable[[Path], None] = lambda _: None,
    faults: Mapping[str, int] = FAULTS,
    every: int = 1,
    lasting: int = 0,
    modules: Sequence[str] = (),
) -> int:
    """Break `python -m STAGE` at every `every`-th call with each of `faults`. Returns how often it was broken.

    `prepare` puts what the command needs into an empty folder and returns its arguments. `broken` looks at the folder
    after the broken command, which must have died of the kill, succeeded (with exit code 3 if it lists parts that it
    did not do), or said what was refused; `finished` after the same command was given again, which must succeed.
    `modules`: imported once instead of by each command.
    """
    control, output, place = Control(folder), folder / "output", folder / "place"
    with serving(control, (f"{stage}.cli", *modules)) as server:

        def run(arguments: Sequence[object]) -> int:
            return server.run("command", stage=stage, arguments=list(map(str, arguments)), output=output)

        def ready() -> Sequence[object]:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            return prepare(place)

        arguments = ready()
        control.watch(place)
        assert run(arguments) == 0, output.read_text()
        total = control.counter
        finished(place)
        fired = 0
        for kind, number in _points(faults, range(0, total, every)):
            control.disarm()
            arguments = ready()
            with replayed_by(FAULTS_AT=f"{kind}:{number}"):
                control.arm(number, faults[kind], lasting)
                code = run(arguments)
                fired += control.fired > 0
                what = f"{kind} at call {number} of {total} ({control.kind}): exit code {code}, {output.read_text()}"
                told = any(line.startswith("error: ") for line in output.read_text().splitlines())
                control.disarm()
                assert code in ((-9, 0, 1, 3) if kind == "kill" else (0, 1, 3)), what
                assert (code == 1) == told, what
                broken(place)
                assert run(arguments) == 0, f"after {what}\nthe same command: {output.read_text()}"
                finished(place)
    return fired


def _points(faults: Mapping[str, int], numbers: Sequence[int]) -> list[tuple[str, int]]:
    if only := os.environ.get("FAULTS_AT"):
        kind, _, number = only.partition(":")
        return [(kind, int(number))]
    return [(kind, number) for kind in faults for number in numbers]
