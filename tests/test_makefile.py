"""What is given to make arrives in the commands as it was given: neither make nor a shell runs any of it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[1] / "Makefile"

HOSTILE = (
    "x$(shell touch P).mp4",
    "$(eval $(shell touch P))",
    "$HOME/${HOME}/$(HOME)/$$",
    "`touch P`; touch P & touch P | touch P > P",
    'it\'s "quoted", with 100 % # signs \\',
    "$(error stop)",
    "$(call quoted,$(shell touch P))",
    "--help",
    "~",
)

OPTIONS = {
    "extract": (
        "DATASET",
        "DATA",
        "WEIGHTS",
        "VIEWS",
        "FORMAT",
        "DEVICE",
        "JOBS",
        "ENGINE",
        "WORKERS",
        "CACHE",
        "WORK",
    ),
    "train": ("DATASET", "LEVEL", "POOL", "SPLIT", "SEED", "RECIPE", "CLIPS", "DEVICE", "WORK"),
    "fuse": ("DATASET", "POOL", "SPLIT", "SEED", "RECIPE", "CLIPS", "WORK"),
    "sweep": ("TABLE",),
    "data": ("DATASET", "DATA"),
    "predict": ("VIDEO", "DATASET", "CLIPS", "DEVICE", "WORK"),
}
"""Variables that a target gives to its command."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The Makefile beside an interpreter that writes down what it is called with."""
    shutil.copy(MAKEFILE, tmp_path)
    for name in ("setup.cfg", "pyproject.toml", "constraints.txt", ".venv/.ready"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir()
    python.write_text(
        f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]), file=open('calls', 'a'))\n"
    )
    python.chmod(0o755)
    return tmp_path


def make(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME")}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env={**kept, **environment}, capture_output=True, text=True, check=False
    )


def calls(folder: Path) -> list[list[str]]:
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


def test_a_variable_that_nothing_reads_is_named(folder: Path) -> None:
    assert "no target reads LEVL: docs/usage.md" in make(folder, "fuse", "LEVL=mid", "SEED=1").stderr
    assert make(folder, "fuse", "LEVEL=mid", "WORK=w").stderr == ""


@pytest.mark.parametrize("target", OPTIONS)
@pytest.mark.parametrize("text", HOSTILE)
def test_values_arrive_as_they_were_given(folder: Path, target: str, text: str) -> None:
    given = {name: text for name in OPTIONS[target] if name != "LEVEL" or target == "train"}
    if "VIDEO" in given:
        given["VIDEO"] = text = text.replace("/", "-")
        (folder / text).touch()
    by_option = [f"{name}={value}" for name, value in given.items()]
    for run in (make(folder, target, *by_option), make(folder, target, **given)):
        assert run.returncode == 0, run.stderr
        last = calls(folder)[-1]
        found = {last[i].removeprefix("--").upper(): last[i + 1] for i in range(len(last) - 1) if last[i] != text}
        assert {name: found.get(name, last[-1]) for name in given} == given
    before = calls(folder)
    assert make(folder, "--dry-run", target, *by_option).returncode == 0
    assert make(folder, "--dry-run", target, **given).returncode == 0
    assert calls(folder) == before
    assert not (folder / "P").exists()


@pytest.mark.parametrize(
    "name", ["PYTHON3", "VENV", "PY", "READY", "quoted", "option", "FUSE", "VARIABLES", "literal", "newline"]
)
def test_other_variables_run_nothing(folder: Path, name: str) -> None:
    for text in ("x$(shell touch P)", "x; touch P"):
        for target in (("fuse",), ("install",), ("clean",), ("--dry-run", "fuse")):
            make(folder, *target, f"{name}={text}")
            make(folder, *target, **{name: text})
    assert not (folder / "P").exists()


def test_a_named_run_is_fused_as_it_is(folder: Path) -> None:
    assert make(folder, "fuse", "RUN=mean-seed0-l4", "CALIBRATE=1").returncode == 0
    assert calls(folder) == [["-m", "fuse", "--work", "work", "--run", "mean-seed0-l4"]]


def test_a_line_break_is_refused(folder: Path) -> None:
    run = make(folder, "predict", VIDEO="x\ntouch P\n")
    assert run.returncode == 2
    assert "VIDEO has a line break" in run.stderr
    assert not (folder / "P").exists()


@pytest.mark.parametrize("fits", [True, False])
def test_the_newest_python_that_fits_makes_the_environment(folder: Path, fits: bool) -> None:
    """pyenv's shims exist and fail; `python3` may be too old. A `.venv` that is there keeps its Python."""
    (folder / ".venv" / ".ready").unlink()
    interpreter = (folder / ".venv" / "bin" / "python").rename(folder / "interpreter")
    tools = folder / "tools"
    tools.mkdir()
    for name in ("uname", "sh", "mkdir", "cp", "touch"):
        (tools / name).symlink_to(str(shutil.which(name)))
    scripts = {
        "python3.14": "exit 127",
        "python3.13": "exit 1",
        "python3.12": f"exit {int(not fits)}",
        "python3": "exit 1",
    }
    for name, end in scripts.items():
        venv = f'[ "$2" != venv ] || {{ mkdir -p .venv/bin; cp {interpreter} .venv/bin/python; echo {name} >> made; }}'
        (tools / name).write_text(f"#!{shutil.which('sh')}\n{venv}\n{end}\n")
        (tools / name).chmod(0o755)
    command = [str(shutil.which("make")), "install"]
    run = subprocess.run(command, cwd=folder, env={"PATH": str(tools)}, capture_output=True, text=True, check=False)
    if fits:
        assert run.returncode == 0, run.stderr
        assert (folder / "made").read_text() == "python3.12\n"
        assert calls(folder)[-1][-2:] == ["-e", "."]
    else:
        assert run.stderr.startswith("no Python 3.11 to 3.14 with its venv module")
        assert not (folder / "made").exists()


def test_what_the_values_need_is_installed(folder: Path) -> None:
    make(folder, "extract", "BACKBONE=timm:resnet18", "CACHE=s3://bucket/a", "ALLOW_REMOTE=1")
    installed = [call[-1] for call in calls(folder) if call[1:3] == ["pip", "install"]]
    assert sorted(installed) == [".[s3]", ".[timm]"]
    assert "--allow-remote" in calls(folder)[-1]
    make(folder, "extract", "BACKBONE=timm:resnet18", "CACHE=s3://bucket/a")
    assert "--allow-remote" not in calls(folder)[-1]
    assert len([call for call in calls(folder) if call[1:3] == ["pip", "install"]]) == 2


def test_blanks_separate_several_videos_unless_there_is_such_a_file(folder: Path) -> None:
    make(folder, "predict", "VIDEO=a.mp4 b c.mp4")
    (folder / "b c.mp4").touch()
    make(folder, "predict", "VIDEO=b c.mp4")
    assert [call[call.index("--") + 1 :] for call in calls(folder)] == [["a.mp4", "b", "c.mp4"], ["b c.mp4"]]
