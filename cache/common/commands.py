"""How the running command was given, by make or by itself, and commands to advise in the same form."""

import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cache.common.workspace import Workspace

TYPED = "MRRN_MAKE"
"""Environment variable in which the Makefile says how make was called, quoted for a shell:

    WEIGHTS=exported.pth make fuse DATASET=demo
"""


@dataclass(frozen=True)
class MakeCall:
    """A call of make."""

    exported: Mapping[str, str]
    """Variables that it took from its environment."""
    goals: tuple[str, ...]
    given: Mapping[str, str]
    """Variables of its command line."""


def make_call() -> MakeCall | None:
    """The call of make that started this process; None if it was started without."""
    try:
        words = shlex.split(os.environ.get(TYPED, ""))
    except ValueError:
        return None
    if "make" not in words:
        return None
    before, after = words[: words.index("make")], words[words.index("make") + 1 :]
    goals = tuple(word for word in after if not _ASSIGNMENT.match(word))
    exported, given = (dict(word.split("=", 1) for word in part if _ASSIGNMENT.match(word)) for part in (before, after))
    return MakeCall(exported, goals, given)


_ASSIGNMENT = re.compile("[A-Z_]+=")


def same_command() -> str:
    """The running command as it was given, for a shell. Without --fresh: what it did already would be lost."""
    if call := make_call():
        given = [f"{name}={value}" for name, value in call.given.items() if name != "FRESH"]
        return shlex.join(["make", *call.goals, *given])
    same = sys.orig_argv if "-m" in sys.orig_argv[:2] else [Path(sys.argv[0]).name, *sys.argv[1:]]
    return shlex.join(each for each in same if each != "--fresh")


def source_of(option: str) -> str:
    """Where the value of `option` (--weights) comes from, if it was given: make's variable, exported or not, or it."""
    variable = option.removeprefix("--").replace("-", "_").upper()
    call = make_call()
    if call and variable in call.exported:
        return f"the environment variable {variable} (`unset {variable}` takes it away)"
    return f"{variable}= of make's command line" if call and variable in call.given else option


def advised(command: str, workspace: Workspace, **options: str) -> str:
    """A command to type next: with make if make started this process, else `mrrn`.

    advised("train", workspace, dataset="mine") -> mrrn train --dataset mine, or make train DATASET=mine
    """
    if str(workspace.root) != "work":
        options["work"] = str(workspace.root)
    if make_call():
        return shlex.join(["make", command, *(f"{name.upper()}={value}" for name, value in options.items())])
    video = [options.pop("video")] if "video" in options else []
    return shlex.join(["mrrn", command, *(word for name in options for word in (f"--{name}", options[name])), *video])
