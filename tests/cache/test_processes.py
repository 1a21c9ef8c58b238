"""Names of processes: alive while they run, dead when they have ended or were replaced."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cache.processes import is_alive, is_dead, this_process


def test_this_process_is_alive() -> None:
    assert not is_dead(this_process())
    assert this_process() == this_process()


def test_an_ended_process_is_dead_even_before_it_is_waited_for() -> None:
    code = "from cache.processes import this_process; print(this_process(), flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    name = child.stdout.readline().strip()
    assert not is_dead(name)
    child.kill()
    deadline = time.monotonic() + 10
    while not is_dead(name) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert is_dead(name)
    child.communicate()
    assert is_dead(name)


def test_a_process_that_got_the_number_of_a_dead_one_is_not_it() -> None:
    machine, kernel, pid, started = this_process().rsplit("-", 3)
    assert is_dead(f"{machine}-{kernel}-{pid}-{int(started) - 1}")


def test_a_process_of_an_earlier_start_of_this_machine_is_dead() -> None:
    host, machine, boot, _, pid, started = this_process().rsplit("-", 5)
    other = "1" * 16
    assert is_dead(f"{host}-{machine}-{other}-{other}-{pid}-{started}") == (machine != "0" * 16)
    assert not is_dead(f"{host}-{'0' * 16}-{other}-{other}-{pid}-{started}"), "a container without an identity"
    assert not is_dead(f"{host}-{machine}-{boot}-{other}-{pid}-{started}"), "another container of this machine"


def test_names_of_an_earlier_version_are_understood() -> None:
    host, _, _, kernel, pid, started = this_process().rsplit("-", 5)
    assert is_alive(f"{host}-{kernel}-{pid}-{started}")
    assert is_dead(f"{host}-{kernel}-{pid}-{int(started) - 1}")
    assert not is_dead(f"{host}-{'1' * 16}-{pid}-{started}")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES])
def test_a_process_is_not_dead_because_nothing_can_be_read_now(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    name = this_process()

    def refuse(path: Path) -> bytes:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert not is_dead(name)
    assert not is_alive(name)


def test_nothing_is_said_about_other_machines_and_other_names() -> None:
    machine, kernel, _, started = this_process().rsplit("-", 3)
    assert not is_dead(f"elsewhere-{kernel}-{os.getpid()}-{int(started) - 1}")
    assert not is_dead(f"{machine}-{'0' * 16}-{os.getpid()}-1")
    assert not is_dead("worker-1")
    assert not is_dead("")
