"""What needs no cluster of the cluster engine: counts, and the pool of workers with Ray replaced by a stand-in."""

import pytest
from click.testing import CliRunner

from cache.commit import StagedShard
from cache.ledger import Outcome
from extract.cli import main
from extract.cluster.progress import ClusterProgress, TaskReport, kind_of

OUTCOMES = (
    Outcome(video_id="a/ü", status="done", num_frames=3, seconds=0.5),
    Outcome(video_id="b", status="failed", reason="decoder crashed with SIGSEGV (libx.so.7)"),
)


def a_report(node: str = "n1", frames: int = 3) -> TaskReport:
    staged = StagedShard(name=".tmp-5-6-7", outcomes=OUTCOMES)
    seconds = {"decode": 1.0, "transfer": 0.5, "forward": 6.0, "write": 0.5, "task": 9.0}
    return TaskReport(staged=(staged,), node=node, frames=frames, seconds=seconds, idle_seconds=1.0)


def test_reports_are_counted_by_node_and_by_reason():
    counts = ClusterProgress()
    for node in ("n1", "n2", "n2"):
        counts.add(a_report(node))
    assert (counts.meter.finished, counts.failures) == (6, {"decoder crashed with SIGSEGV": 3})
    assert (counts.meter.frames, counts.meter.failed) == (9, 3)
    assert counts.rates().keys() == {"n1", "n2"}
    assert "3 failed (decoder crashed with SIGSEGV 3)" in counts.text()
    assert abs(counts.overhead - 0.25) < 1e-9
    assert "forward 60.0 %" in counts.summary()


def test_reasons_are_counted_without_their_details():
    assert kind_of("no new frame for 60 s") == "no new frame for  s"
    assert kind_of("needs more than 17 bytes: x") == kind_of("needs more than 9,000 bytes")
    assert kind_of("12") == "12"


@pytest.mark.slow
def test_a_driver_outside_the_cluster_is_told_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    pytest.importorskip("ray", reason="needs mrrn[ray]")
    options = ("--work", str(tmp_path), "--dataset", "demo", "--engine", "ray", "--weights", "random:0")
    done = CliRunner().invoke(main, options)
    assert done.exit_code == 1
    assert "`ray job submit`" in done.output
