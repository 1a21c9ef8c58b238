"""The page's "How to make it again": its commands, run in an empty folder, give the same figures."""

import html
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MAIN = Path(__file__).resolve().parents[3]

EXTRACT = "--weights random:3 --backbone shufflenet_v2_x0_5 --views center,center_flip --fps 12 --max-frames 20"
TRAIN = "--recipe paper --pool max --seed 1 --clips length=8,stride=4,max=3,keep=even"


def mrrn(folder: Path, *command: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(MAIN), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "mrrn", *command], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def figures(folder: Path) -> dict[str, Any]:
    """All of results.json but when, and how quickly, it was made."""
    found = json.loads((folder / "work/report/demo/split1/results.json").read_text())
    for curve in found["curves"].values():
        for epoch in curve:
            del epoch["seconds"]
    return {name: value for name, value in found.items() if name not in ("made", "cost", "seal")}


@pytest.mark.slow
def test_the_pages_commands_give_the_same_figures(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    demo = ("--dataset", "demo")
    mrrn(first, "extract", *demo, *EXTRACT.split(), "--precision", "fp32", "--batch-frames", "8")
    for more in ((), ("--holdout",)):
        mrrn(first, "train", *demo, *TRAIN.split(), *more)
    mrrn(first, "fuse", *demo, *TRAIN.split())
    page = (first / "work/report/demo/split1/report.html").read_text()
    section = page[page.index('id="again"') :]
    (commands,) = re.findall(r"<pre>(mrrn .*?)</pre>", section, re.DOTALL)
    for line in html.unescape(commands).splitlines():
        name, *command = shlex.split(line)
        assert name == "mrrn"
        mrrn(second, *command)
    assert figures(second) == figures(first)
