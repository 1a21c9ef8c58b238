"""What needs no cluster of the cluster engine: messages, counts, slots; Ray itself is not needed either."""

from pathlib import Path

from click.testing import CliRunner

from cache.commit import StagedShard
from cache.ledger import Claim, ClaimedVideo, Outcome
from cache.shards.writer import Written
from extract.cli import main
from extract.cluster.messages import Report, report_of, report_row, task_of, task_row
from extract.cluster.tally import Tally, kind_of
from extract.shards import Task

OUTCOMES = (
    Outcome(video_id="a/ü", status="done", num_frames=3, seconds=0.5),
    Outcome(video_id="b", status="failed", reason="decoder crashed with SIGSEGV (libx.so.7)"),
)


def a_report(node: str = "n1", frames: int = 3) -> Report:
    written = Written(digest="0" * 32, num_bytes=7)
    aside = StagedShard(name=".tmp-5-6-7", outcomes=OUTCOMES, written=written, content="c", num_videos=1, num_frames=3)
    seconds = {"decode": 1.0, "transfer": 0.5, "forward": 6.0, "write": 0.5, "task": 9.0}
    return Report(token=5, asides=(aside,), node=node, frames=frames, seconds=seconds, idle_seconds=1.0)


def test_tasks_and_reports_come_out_as_they_went_in():
    videos = (ClaimedVideo("a/ü", "a/ü.avi"), ClaimedVideo("b", "b.mp4"))
    task = Task(Claim("me", 5, videos, 12.5), (Path("/videos/a/ü.avi"), None))
    assert task_of(task_row(task)) == task
    assert report_of(report_row(a_report())) == a_report()


def test_a_job_counts_by_node_and_by_reason():
    tally = Tally()
    for node in ("n1", "n2", "n2"):
        tally.add(a_report(node))
    assert (tally.finished, tally.failures) == (6, {"decoder crashed with SIGSEGV": 3})
    assert tally.rates().keys() == {"n1", "n2"}
    assert "3 failed (decoder crashed with SIGSEGV 3)" in tally.text()
    assert abs(tally.overhead - 0.25) < 1e-9
    assert "forward 60.0 %" in tally.summary()


def test_reasons_are_counted_without_their_details():
    assert kind_of("no new frame for 60 s") == "no new frame for  s"
    assert kind_of("needs more than 17 bytes: x") == kind_of("needs more than 9,000 bytes")
    assert kind_of("12") == "12"


def test_a_driver_outside_the_cluster_is_told_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    import pytest

    pytest.importorskip("ray", reason="needs mrrn[ray]")
    options = ("--work", str(tmp_path), "--dataset", "demo", "--engine", "ray", "--weights", "random:0")
    done = CliRunner().invoke(main, options)
    assert done.exit_code == 1
    assert "`ray job submit`" in done.output
