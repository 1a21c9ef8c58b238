"""What travels between the driver and its workers: tasks one way, reports the other, as text in rows of Ray Data."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cache.commit import StagedShard
from cache.ledger import Claim, ClaimedVideo, Outcome
from cache.shards.writer import Written
from extract.shards import Task


@dataclass(frozen=True, kw_only=True)
class Report:
    """What came of a task."""

    token: int
    """Of its claim."""
    asides: tuple[StagedShard, ...] = ()
    """Its shards, written and waiting to be committed."""
    error: str = ""
    """Why there are none: something that the next task would meet as well, in words for the user."""
    node: str = ""
    """Name of the machine."""
    frames: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """By what the worker did or waited for, see `extract.meter.STAGES`, and "task": all of the task."""
    idle_seconds: float = 0.0
    """Between the worker's last task, or its start, and this one."""


def task_row(task: Task) -> dict[str, Any]:
    """A task as a row."""
    paths = [None if path is None else str(path) for path in task.paths]
    return {"task": json.dumps({"claim": asdict(task.claim), "paths": paths})}


def task_of(row: dict[str, Any]) -> Task:
    """The inverse."""
    value = json.loads(row["task"])
    claim = value["claim"]
    videos = tuple(ClaimedVideo(*video) for video in claim.pop("videos"))
    return Task(Claim(videos=videos, **claim), tuple(None if path is None else Path(path) for path in value["paths"]))


def report_row(report: Report) -> dict[str, Any]:
    """A report as a row."""
    return {"report": json.dumps(asdict(report))}


def report_of(row: dict[str, Any]) -> Report:
    """The inverse."""
    value = json.loads(row["report"])
    return Report(**{**value, "asides": tuple(_aside(aside) for aside in value["asides"])})


def _aside(value: dict[str, Any]) -> StagedShard:
    written = value["written"] and Written(**value["written"])
    return StagedShard(
        **{**value, "written": written, "outcomes": tuple(Outcome(**each) for each in value["outcomes"])}
    )
