"""All stages in one command: their order, and that a failure ends it."""

from dataclasses import replace
from pathlib import Path

import pytest

from cache.common.errors import TrainingError
from cache.common.workspace import Workspace
from fuse import reproduce
from fuse.choice import RunChoice


def test_reproducing_runs_the_stages_in_order_and_stops_where_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reproduce, "_expected", lambda *_: {"levels": 100.0, "1": 3600.0, "2": 60.0})
    choice = RunChoice(workspace=Workspace(tmp_path), dataset="hmdb51", recipe="paper", clips="keep=even,max=9")
    steps = list(reproduce.steps_of(choice, device="cpu", seeds=2))
    assert [step.title.split(":")[0] for step in steps] == [
        "the three levels (Table 3, Figures 3 to 5)",
        "fusion weights on held-out training videos",
        "Table 2",
        "Figure 6",
        "Table 1",
    ]
    assert "--recipe" in steps[0].command
    assert [step.seconds for step in steps] == [100.0, 80.0, 60.0, 600.0, 3600.0]
    demo = list(reproduce.steps_of(replace(choice, dataset="demo"), device="cpu", seeds=1, fresh=True))
    assert demo[4].command[-4:] == ("--grid", "hidden=32,64,128", "--grid", "layers=1,2,3")
    assert demo[3].command[-6:] == ("--batches", "5", "--seconds", "3", "--clips", "1")
    assert all("--fresh" in step.command for step in demo if "train" in step.command)
    assert "recipe=paper" in steps[2].command
    assert "clips=keep=even+max=9" in steps[2].command
    failing = [
        reproduce.Step("first", ("-c", "print('did the first')")),
        reproduce.Step("second", ("-c", "raise SystemExit(3)"), seconds=3600),
        reproduce.Step("third", ("-c", "print('did the third')")),
    ]
    monkeypatch.setattr(reproduce, "steps_of", lambda *_, **__: iter(failing))
    with pytest.raises(TrainingError, match="second ended with exit code 3"):
        reproduce.run_all(choice, device="cpu", seeds=2)
    printed = capfd.readouterr().out
    assert "3 steps, about 60 min" in printed
    assert "did the first" in printed
    assert "did the third" not in printed
