"""What the command lines share: exit codes, the choice of a dataset, progress in a log."""

import errno
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cache.common.console import StageGroup, choose_dataset, dataset_option, progress, work_option
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
@click.argument("number", type=int)
def disk(number: int) -> None:
    raise OSError(number, "refused", "somewhere")


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
    assert "the disk refuses" in full.stderr
    assert isinstance(CliRunner().invoke(stage, ["disk", str(errno.ENOENT)]).exception, FileNotFoundError)


def test_a_bug_keeps_its_traceback() -> None:
    assert isinstance(CliRunner().invoke(stage, ["bug"]).exception, KeyError)


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


def test_progress_in_a_log_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("reading", 10, "videos") as shown:
        for done in range(11):
            shown.update(done, "all well")
    assert capsys.readouterr().out.count("\n") <= 1


def test_a_progress_line_has_rate_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("reading", 10, "videos") as shown:
        shown.every_seconds = 0.0  # type: ignore[attr-defined]
        shown.update(4, "1 failed")
    line = capsys.readouterr().out
    assert line.startswith("reading: 4/10 videos, ")
    assert "s left, 1 failed" in line
