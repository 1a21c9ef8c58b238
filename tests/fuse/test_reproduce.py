"""All stages in one command: their order, and that a failure ends it."""

from pathlib import Path

import pytest

from cache.common.errors import TrainingError
from cache.common.workspace import Workspace
from fuse import reproduce
from fuse.scores import RunChoice


def test_reproducing_runs_the_stages_in_order_and_stops_where_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
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
    assert "recipe=paper" in steps[2].command
    assert "clips=keep=even+max=9" in steps[2].command
    failing = [
        reproduce.Step("first", ("-c", "print('did the first')")),
        reproduce.Step("second", ("-c", "raise SystemExit(3)")),
        reproduce.Step("third", ("-c", "print('did the third')")),
    ]
    monkeypatch.setattr(reproduce, "steps_of", lambda *_, **__: iter(failing))
    with pytest.raises(TrainingError, match="second ended with exit code 3"):
        reproduce.run_all(choice, device="cpu", seeds=2)
    printed = capfd.readouterr().out
    assert "did the first" in printed
    assert "did the third" not in printed
