"""Ctrl-C: exit codes, what is held back and what is not, the second one."""

import signal
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from cache.common.console import StageGroup
from cache.common.interrupts import Interrupted, held_back, interruptible, let_through


@click.group(cls=StageGroup)
def stage() -> None:
    """A stage."""


@stage.command()
@click.argument("name")
def stop(name: str) -> None:
    signal.raise_signal(signal.Signals[name])


@pytest.mark.parametrize(("name", "code", "how"), [("SIGINT", 130, "Ctrl-C"), ("SIGTERM", 143, "SIGTERM")])
def test_a_command_ends_with_a_message_and_the_command_that_goes_on(name: str, code: int, how: str) -> None:
    before = signal.getsignal(signal.SIGINT)
    result = CliRunner().invoke(stage, ["stop", name])
    assert result.exit_code == code
    assert result.stderr.startswith(f"stopped by {how}: ")
    assert "give the same command:\n" in result.stderr
    assert signal.getsignal(signal.SIGINT) is before


def test_while_modules_are_imported_a_signal_ends_without_a_traceback() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "cache", "info"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "click" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGINT)
        assert "Traceback" not in process.stderr.read()
    assert process.returncode == -signal.SIGINT


def test_a_signal_that_is_held_back_comes_at_the_end_of_the_block() -> None:
    seen = []

    @held_back()
    def save() -> None:
        signal.raise_signal(signal.SIGINT)
        seen.append("saved")

    with interruptible(), pytest.raises(Interrupted):
        save()
    assert seen == ["saved"]


@pytest.mark.parametrize("before", [True, False])
def test_a_signal_is_let_through_where_nothing_is_lost(before: bool) -> None:
    @held_back()
    def wait() -> None:
        if before:
            signal.raise_signal(signal.SIGINT)
        with let_through():
            signal.raise_signal(signal.SIGINT)
        pytest.fail("went on")

    with interruptible(), pytest.raises(Interrupted):
        wait()


def test_ignored_signals_stay_ignored_and_the_second_one_ends_at_once() -> None:
    twice = (
        "import signal; from cache.common import interrupts as i\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "with i.interruptible(), i.held_back():\n"
        "    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT): signal.raise_signal(number)\n"
        "    i._State.seconds -= 1; print('one Ctrl-C so far', flush=True)\n"
        "    signal.raise_signal(signal.SIGINT); print('never')\n"
    )
    run = subprocess.run([sys.executable, "-c", twice], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (130, "one Ctrl-C so far\n", "")
