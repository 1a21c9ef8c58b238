"""How the command was given, and what is advised next."""

import sys
from pathlib import Path

import pytest

from cache.common.commands import advised, make_call, same_command, source_of
from cache.common.workspace import Workspace


def test_without_make_the_command_itself_is_the_same_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MRRN_MAKE", raising=False)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "train", "--dataset", "it's", "--fresh"])
    assert make_call() is None
    assert same_command() == "python -m train --dataset 'it'\"'\"'s'"
    assert source_of("--weights") == "--weights"
    assert advised("train", Workspace(Path("work")), dataset="a b") == "mrrn train --dataset 'a b'"
    assert (
        advised("predict", Workspace(Path("w")), dataset="x", video="clip.mp4")
        == "mrrn predict --dataset x --work w clip.mp4"
    )


def test_with_make_its_variables_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRRN_MAKE", "WEIGHTS='my file.pth' make fuse DATASET='it'\\''s' VIEWS='a=b' FRESH='1'")
    assert same_command() == "make fuse 'DATASET=it'\"'\"'s' VIEWS=a=b"
    assert "the environment variable WEIGHTS (`unset WEIGHTS`" in source_of("--weights")
    assert source_of("--views") == "VIEWS= of make's command line"
    assert source_of("--max-frames") == "--max-frames"
    assert advised("train", Workspace(Path("w")), dataset="x") == "make train DATASET=x WORK=w"


@pytest.mark.parametrize("text", ["'", "", "cmake x", "\x00"])
def test_what_make_did_not_write_is_ignored(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("cache.common.commands.os.environ", {"MRRN_MAKE": text})
    assert make_call() is None
