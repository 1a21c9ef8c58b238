"""What the command lines share: exit codes, the choice of a dataset, progress in a log."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cache.common.console import (
    FINISHED_WITH_FAILURES,
    StageGroup,
    choose_dataset,
    dataset_option,
    say,
    say_next,
    work_option,
)
from cache.common.errors import CacheError
from cache.common.workspace import Workspace


@click.group(cls=StageGroup)
def stage() -> None:
    """A stage."""


@stage.command()
def expected() -> None:
    raise CacheError("the cache is unfinished; do this next")


@stage.command()
def bug() -> None:
    raise KeyError("a bug")


@stage.command()
def names() -> None:
    """Says école → 東."""
    click.echo("école → 東 \udce9")
    click.echo("école → 東 \udce9", err=True)
    raise CacheError("école → 東 \udce9")


@stage.command()
@click.argument("number", type=int)
def disk(number: int) -> None:
    raise OSError(number, "refused", "somewhere")


@stage.command()
@click.argument("kind")
def short(kind: str) -> None:
    """Runs out of something, as libraries tell of it."""
    if kind == "memory":
        raise MemoryError
    if kind == "library":
        raise ImportError("libx.so: cannot open shared object file: Too many open files")
    if kind == "segment":
        raise ImportError("libtorch_cpu.so: failed to map segment from shared object")
    if kind == "thread":
        raise RuntimeError("can't start new thread")
    if kind == "host":
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 40000000000 bytes.")
    if kind == "device":
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    try:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    except OSError:
        raise AttributeError("a library that did not expect it") from None if kind == "hidden" else RuntimeError("x")


@stage.command()
@work_option
@dataset_option
def show(workspace: Workspace, dataset: str | None) -> None:
    click.echo(f"{workspace.root} {choose_dataset(workspace, dataset)}")


def test_an_expected_error_is_a_message_and_exit_code_1() -> None:
    result = CliRunner().invoke(stage, ["expected"])
    assert result.exit_code == 1
    assert result.stderr == "error: the cache is unfinished; do this next\n"
    assert result.stdout == ""


def test_a_disk_that_refuses_is_an_expected_error_and_a_missing_file_a_bug() -> None:
    full = CliRunner().invoke(stage, ["disk", str(errno.ENOSPC)])
    assert full.exit_code == 1
    assert "the system refuses" in full.stderr
    assert isinstance(CliRunner().invoke(stage, ["disk", str(errno.ENOENT)]).exception, FileNotFoundError)


@pytest.mark.parametrize("kind", ["memory", "library", "segment", "thread", "host", "device", "hidden"])
def test_what_libraries_say_when_something_runs_out_is_an_expected_error(kind: str) -> None:
    result = CliRunner().invoke(stage, ["short", kind])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: the system refuses: ")


def test_a_workspace_that_is_a_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = CliRunner().invoke(stage, ["show", "--work", str(tmp_path / "file"), "--dataset", "x"])
    assert result.exit_code == 1
    assert f"error: {tmp_path / 'file'} is not a folder; --work (WORK=)" in result.stderr


@pytest.mark.parametrize("number", [errno.ENAMETOOLONG, errno.ENOTDIR, errno.EMFILE, errno.EFBIG, errno.ENOTEMPTY])
def test_each_refusal_is_an_expected_error_with_its_path(number: int) -> None:
    result = CliRunner().invoke(stage, ["disk", str(number)])
    assert result.exit_code == 1
    assert "somewhere" in result.stderr


def test_a_bug_keeps_its_traceback() -> None:
    assert isinstance(CliRunner().invoke(stage, ["bug"]).exception, KeyError)


def test_on_a_terminal_lines_are_broken_between_words_and_go_on_indented(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "30")
    say("  six classes: disc_grows, disc_shrinks\nshort")
    assert terminal.getvalue() == "  six classes: disc_grows,\n    disc_shrinks\nshort\n"


@stage.command()
@click.pass_context
def first(context: click.Context) -> None:
    say_next("mrrn second", "first")
    click.echo("done")
    context.exit(FINISHED_WITH_FAILURES)


def test_the_next_command_comes_last_and_not_where_make_goes_on_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for call, told in (("", True), ("make first DATASET=x", True), ("make second", False)):
        monkeypatch.setenv("MRRN_MAKE", call)
        ended = CliRunner().invoke(stage, ["first"])
        assert (ended.exit_code, ended.stdout) == (3, "done\nnext: mrrn second\n" if told else "done\n")


def test_wrong_usage_is_exit_code_2() -> None:
    assert CliRunner().invoke(stage, ["expected", "--no-such-option"]).exit_code == 2


def test_the_dataset_is_the_one_given_else_the_last_one_else_the_demo(tmp_path: Path) -> None:
    work = ["--work", str(tmp_path)]
    first = CliRunner().invoke(stage, ["show", *work])
    assert first.stdout == f"{tmp_path} demo\n"
    assert "nothing was extracted yet" in first.stderr
    Workspace(tmp_path).remember_dataset("ucf101")
    last = CliRunner().invoke(stage, ["show", *work])
    assert last.stdout == f"{tmp_path} ucf101\n"
    assert "extracted last" in last.stderr
    given = CliRunner().invoke(stage, ["show", *work, "--dataset", "toy"])
    assert (given.stdout, given.stderr) == (f"{tmp_path} toy\n", "")


@pytest.mark.parametrize(
    "encoding",
    ["utf-8:strict", "latin-1", "ascii:strict"]
    + [pytest.param(each, marks=pytest.mark.slow) for each in ("utf-8", "latin-1:strict", "cp1252")],
)
@pytest.mark.parametrize("arguments", [("names",), ("names", "--help"), ("école",)])
def test_what_the_encoding_cannot_hold_is_replaced(encoding: str, arguments: tuple[str, ...]) -> None:
    code = "from tests.cache.common.test_console import stage; stage(prog_name='stage')"
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        check=False,
    )
    assert b"Traceback" not in run.stderr
    assert run.returncode == {"names": 1, "--help": 0, "école": 2}[arguments[-1]]
    name = encoding.partition(":")[0]
    if arguments == ("names",) and name != "ascii":  # click takes ASCII for a mistake and writes UTF-8
        held = "école → 東 ?" if name == "utf-8" else "école ? ? ?"
        assert run.stdout.decode(name) == f"{held}\n"
        # In an error, what is no character is shown as an escape in every encoding.
        assert run.stderr.decode(name) == f"{held}\nerror: {held[:-1]}\\udce9\n"
