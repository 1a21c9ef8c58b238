"""What all command lines share: options, errors as messages, progress on a terminal and in a log."""

import errno
import io
import math
import os
import signal
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

import click

from cache.clips import CLIPS_FORM, CLIPS_HELP, ClipRule
from cache.common.commands import make_call, same_command
from cache.common.errors import MrrnError
from cache.common.files import out_of_memory
from cache.common.interrupts import Interrupted, interruptible
from cache.common.progress import duration
from cache.common.text import visible, wrapped
from cache.common.workspace import Workspace

FINISHED_WITH_FAILURES = 3
"""Exit code of a run that reached its end with some failed videos, which are listed."""

TOLD_SECONDS = 5.0
"""A command that took longer says so at its end."""

_TOLD, _NEXT = "cache.common.console.told", "cache.common.console.next"

_SYSTEM_REFUSES = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE),
    *(errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EBUSY),
    *(errno.ENAMETOOLONG, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENXIO),
)
"""Errors of the machine, its disks and what lies on them. Others, and a file that is missing, are bugs."""


_REFUSAL_TEXTS = [os.strerror(number) for number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES)]
_REFUSAL_TEXTS.append("failed to map segment")  # the loader, without memory


def say(text: str, *, err: bool = False, file: Any = None) -> None:
    """Print lines. On a terminal those that are too long are broken between words, and go on indented."""
    stream = file or (sys.stderr if err else sys.stdout)
    if stream.isatty():
        width = get_terminal_size().columns
        text = "\n".join(wrapped(line, " " * (len(line) - len(line.lstrip()) + 2), width) for line in text.split("\n"))
    click.echo(text, err=err, file=file)


def say_time(text: str) -> None:
    """Say how long the command took, with what came of it."""
    click.get_current_context().meta[_TOLD] = True
    say(text)


def say_next(command: str, *goals: str) -> None:
    """Have the `command` to type next printed at the end, unless make has other goals than these and goes on."""
    call = make_call()
    if call is None or set(goals) & set(call.goals):
        click.get_current_context().meta[_NEXT] = command


def _finish(context: click.Context, seconds: float) -> None:
    """Say how long a command took that did not say so itself, and what to type next."""
    if seconds >= TOLD_SECONDS and _TOLD not in context.meta and sys.stderr.isatty():
        say(f"took {duration(seconds)}", err=True)
    if _NEXT in context.meta:
        click.echo(f"next: {context.meta[_NEXT]}")  # unbroken, to be copied


class _ExpectedError(click.ClickException):
    exit_code = 1
    memory_ran_out = False
    """Of the class: whether an error that was shown comes from that."""

    def show(self, file: Any = None) -> None:
        say("\n".join(map(visible, f"error: {self.message}".split("\n"))), err=True, file=file)
        _ExpectedError.memory_ran_out |= _out_of_memory(self)


class _Stopped(_ExpectedError):
    """The end by Ctrl-C: says what is done and what goes on."""

    def __init__(self, interrupted: Interrupted) -> None:
        how = "Ctrl-C" if interrupted.number == signal.SIGINT else signal.Signals(interrupted.number).name
        done = interrupted.done or "what was finished is kept"
        super().__init__(f"stopped by {how}: {done}. To go on, give the same command:\n  {same_command()}")
        self.exit_code = 128 + interrupted.number  # type: ignore[misc]

    def show(self, file: Any = None) -> None:
        what, command = map(visible, self.message.split("\n"))
        say(what, err=True, file=file)
        click.echo(command, err=True, file=file)  # unbroken, to be copied


class StageGroup(click.Group):
    """A click group that shows expected errors as a message with exit code 1; bugs keep their traceback.

    Ctrl-C and SIGTERM stop it with exit code 130 and 143.
    """

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """As click's; what the encoding of the output cannot hold is replaced, not an error after all the work."""
        owns_process = not args and kwargs.get("args") is None
        if owns_process:
            _read_names_as_utf8()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        with interruptible():
            try:
                return super().main(*args, **kwargs)
            except BaseException as end:
                if owns_process and (_ExpectedError.memory_ran_out or _out_of_memory(end)):
                    _end_without_memory(end)
                raise

    def invoke(self, ctx: click.Context) -> Any:
        started = time.monotonic()
        try:
            result = super().invoke(ctx)
            if ctx.parent is None:
                _finish(ctx, time.monotonic() - started)
            return result
        except MrrnError as error:
            raise _ExpectedError(str(error)) from error
        except Interrupted as error:
            raise _Stopped(error) from None
        except click.exceptions.Exit as end:
            if ctx.parent is None and end.exit_code in (0, FINISHED_WITH_FAILURES):
                _finish(ctx, time.monotonic() - started)
            raise
        except (click.ClickException, click.Abort):
            raise
        except Exception as error:
            if (refusal := _refusal(error)) is None:
                raise
            raise _ExpectedError(
                f"the system refuses: {refusal}. What was finished is safe: check the path, its permissions, the disk, "
                "free memory and open files (`ulimit -n`), then run the same command again"
            ) from error


def _read_names_as_utf8() -> None:
    """Start this command again in Python's UTF-8 mode if the locale reads file names as something else.

    Names on disk are bytes: the id of a video must not depend on the locale. The output keeps its encoding.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        output = {"PYTHONUTF8": "1", "PYTHONIOENCODING": f"{sys.stdout.encoding}:replace"}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | output)


def _end_without_memory(end: BaseException) -> None:
    """End the process without the clean-up of its libraries: HDF5's crashes where memory ran out."""
    with suppress(Exception):
        if not isinstance(end, SystemExit):  # memory ran out in telling that it did
            os.write(2, b"error: the system refuses: memory. What was finished is safe: free some, then go on\n")
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(1)


def _out_of_memory(error: BaseException) -> bool:
    return any(map(out_of_memory, _causes(error)))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it comes from."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _refusal(error: BaseException) -> str | None:
    """What the system refused, if that is where `error` comes from."""
    for cause in _causes(error):
        if out_of_memory(cause):
            return f"memory ({cause})" if str(cause) else "memory"
        if isinstance(cause, OSError) and cause.errno in _SYSTEM_REFUSES:
            return str(cause)
        # A library that is loaded when it is first needed says so in its own words.
        if isinstance(cause, ImportError) and any(text in str(cause) for text in _REFUSAL_TEXTS):
            return str(cause)
    return None


class NameChoice(click.Choice[str]):
    """One of some names; of others the nearest one is told."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        near = get_close_matches(str(value), [str(each) for each in self.choices], n=1)
        return super().get_invalid_choice_message(value, ctx) + (f" Did you mean {near[0]}?" if near else "")


class FiniteRange(click.FloatRange):
    """Numbers of a range without infinity and NaN, which `click.FloatRange` takes."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


def _workspace(_context: click.Context, _parameter: click.Parameter, value: str) -> Workspace:
    """Returns the workspace in the folder `value`, which need not be there yet."""
    path = Path(value)
    with suppress(OSError):
        if not stat.S_ISDIR(path.stat().st_mode):
            raise _ExpectedError(f"{path} is not a folder; --work (WORK=) is where caches, runs and reports are kept")
    return Workspace(path)


work_option = click.option(
    "--work",
    "workspace",
    default="work",
    show_default=True,
    metavar="FOLDER",
    callback=_workspace,
    help="Where caches, runs and reports are kept.",
)

dataset_option = click.option(
    "--dataset",
    metavar="NAME",
    help="ucf101, hmdb51, demo, or a name of your own. [default: the dataset extracted last, else demo]",
)

device_option = click.option(
    "--device", default="auto", show_default=True, metavar="NAME", help="auto (CUDA where there is one), cpu, cuda[:N]."
)


def _clips_text(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """Returns the text if a clip rule can be changed by it."""
    if value is not None:
        try:
            ClipRule().changed(value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None
    return value


clips_option = click.option("--clips", metavar=CLIPS_FORM, callback=_clips_text, help=CLIPS_HELP)


def choose_dataset(workspace: Workspace, given: str | None) -> str:
    """Returns the dataset given, else the one extracted last, else "demo"; prints the choice unless it was given."""
    if given:
        return given
    last = workspace.last_dataset()
    name = last or "demo"
    why = "extracted last" if last else "nothing was extracted yet"
    click.echo(f"dataset {name} ({why}; DATASET= or --dataset chooses another)", err=True)
    return name
