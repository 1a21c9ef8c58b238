"""The ledger: claims are exclusive, fenced and lapse; outcomes are counted; a million videos cost no more a claim."""

import sqlite3
import time
from pathlib import Path

import pytest

from cache.common.errors import CacheError, LeaseLostError
from cache.ledger import Claim, Outcome
from cache.ledger.database import Ledger
from cache.processes import this_process


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.create(tmp_path / "ledger.sqlite", [(f"v{i}", f"v{i}.avi") for i in range(10)])


def ids(claim: Claim | None) -> list[str]:
    return [] if claim is None else [video.id for video in claim.videos]


def fail(ledger: Ledger, claim: Claim, video_id: str) -> None:
    with ledger.transaction() as connection:
        ledger.check_claim(connection, claim)
        ledger.record(connection, claim.token, [Outcome(video_id=video_id, status="failed", reason="broken")], None)


def test_claims_are_exclusive_and_in_order(ledger: Ledger) -> None:
    first, second = ledger.claim("a", 4, 60), ledger.claim("b", 4, 60)
    assert ids(first) == ["v0", "v1", "v2", "v3"]
    assert ids(second) == ["v4", "v5", "v6", "v7"]
    assert first is not None
    assert second is not None
    assert second.token > first.token
    assert first.videos[0].path == "v0.avi"
    assert ids(ledger.claim("c", 4, 60)) == ["v8", "v9"]
    assert ledger.claim("d", 4, 60) is None
    assert ledger.counts()["pending"] == 10


def test_a_lapsed_lease_goes_to_the_next_and_the_late_one_is_refused(ledger: Ledger) -> None:
    late = ledger.claim("a", 4, 0.0)
    assert late is not None
    taken = ledger.claim("b", 10, 0.0)
    assert ids(taken) == [f"v{i}" for i in range(10)]
    with pytest.raises(LeaseLostError, match="taken over"):
        ledger.renew(late, 60)
    with pytest.raises(LeaseLostError):
        fail(ledger, late, "v0")
    assert taken is not None
    fail(ledger, taken, "v0")
    assert ledger.counts()["failed"] == 1


class Clocks:
    """What `time` says, instead of the real clocks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall, self.own = 1.7e9, 5.0
        monkeypatch.setattr(time, "time", lambda: self.wall)
        monkeypatch.setattr(time, "monotonic", lambda: self.own)


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    return Clocks(monkeypatch)


@pytest.mark.parametrize("step", [600.0, -600.0, 86400.0 * 3650, -1.7e9])
def test_a_clock_that_is_set_takes_nothing_away(ledger: Ledger, clocks: Clocks, step: float) -> None:
    """Neither from this process, nor from another one, which goes on renewing."""
    mine, theirs = ledger.claim(this_process(), 4, 120), ledger.claim("other", 4, 120)
    assert mine is not None
    assert theirs is not None
    clocks.wall += step
    for _ in range(20):
        assert ids(ledger.claim(this_process(), 1, 120))[:1] in (["v8"], ["v9"], [])
        ledger.renew(theirs, 120)
        clocks.own += 50
    fail(ledger, mine, "v0")
    fail(ledger, theirs, "v4")


def test_a_lease_that_is_ten_years_ahead_is_taken_over_like_any_other(ledger: Ledger, clocks: Clocks) -> None:
    clocks.wall += 86400 * 3650
    assert ledger.claim("other", 10, 120) is not None
    clocks.wall -= 86400 * 3650
    looks = 1
    while ledger.claim(this_process(), 10, 120) is None:
        clocks.own += 2
        looks += 1
    assert looks == 1 + 120 / 2 + 0


def test_a_machine_that_was_suspended_is_not_late(ledger: Ledger, clocks: Clocks) -> None:
    """An hour between two looks is a pause of this process: others may have paused with it."""
    theirs = ledger.claim("other", 10, 120)
    assert theirs is not None
    assert ledger.claim(this_process(), 1, 120) is None
    clocks.own += 3600
    assert ledger.claim(this_process(), 1, 120) is None
    ledger.renew(theirs, 120)
    clocks.own += 3600
    assert ledger.claim(this_process(), 1, 120) is None
    fail(ledger, theirs, "v0")


def test_a_lease_that_ended_but_was_not_taken_is_still_good(ledger: Ledger) -> None:
    claim = ledger.claim("a", 1, 0.0)
    assert claim is not None
    fail(ledger, claim, "v0")
    assert ledger.counts()["failed"] == 1


def test_renewing_keeps_the_lease(ledger: Ledger) -> None:
    claim = ledger.claim("a", 10, 0.0)
    assert claim is not None
    ledger.renew(claim, 60)
    (lease,) = ledger.leases()
    assert lease.expires > time.time() + 50
    assert (lease.owner, lease.token, lease.num_videos) == ("a", claim.token, 10)
    assert ledger.claim("b", 1, 60) is None


def test_a_video_of_another_claim_cannot_be_committed(ledger: Ledger) -> None:
    mine, theirs = ledger.claim("a", 1, 60), ledger.claim("b", 1, 60)
    assert mine is not None
    assert theirs is not None
    with pytest.raises(LeaseLostError, match="'v1'"):
        fail(ledger, mine, "v1")
    with pytest.raises(LeaseLostError):
        fail(ledger, mine, "v5")


def test_a_video_is_committed_once(ledger: Ledger) -> None:
    claim = ledger.claim("a", 2, 60)
    assert claim is not None
    fail(ledger, claim, "v0")
    with pytest.raises(LeaseLostError):
        fail(ledger, claim, "v0")
    fail(ledger, claim, "v1")
    assert ledger.leases() == []


def test_released_videos_are_free_again(ledger: Ledger) -> None:
    claim = ledger.claim("a", 3, 60)
    assert claim is not None
    fail(ledger, claim, "v1")
    ledger.release(claim)
    assert ids(ledger.claim("b", 3, 60)) == ["v0", "v2", "v3"]
    ledger.release(claim)
    assert ids(ledger.claim("b", 1, 60)) == ["v4"]


def test_what_a_dead_process_held_is_free_at_once(ledger: Ledger) -> None:
    name, started = this_process().rsplit("-", 1)
    assert ids(ledger.claim(f"{name}-{int(started) - 1}", 10, 3600)) != []
    assert len(ids(ledger.claim(this_process(), 10, 3600))) == 10
    assert ledger.claim("other", 10, 3600) is None


def test_failed_videos_are_requeued_when_asked(ledger: Ledger) -> None:
    claim = ledger.claim("a", 2, 60)
    assert claim is not None
    fail(ledger, claim, "v0")
    fail(ledger, claim, "v1")
    assert [(o.video_id, o.reason) for o in ledger.outcomes("failed")] == [("v0", "broken"), ("v1", "broken")]
    with ledger.transaction() as connection:
        assert ledger.requeue(connection, ["failed"]) == 2
        assert ledger.requeue(connection, ["failed", "suspect"]) == 0
    assert ledger.counts() == {"pending": 10, "done": 0, "suspect": 0, "failed": 0}
    assert all(outcome == Outcome(video_id=outcome.video_id, status="pending") for outcome in ledger.outcomes())


def test_outcomes_come_in_order_however_many_there_are(tmp_path: Path) -> None:
    videos = [(f"v{i:06d}", f"v{i:06d}.avi") for i in range(25_000)]
    ledger = Ledger.create(tmp_path / "ledger.sqlite", videos)
    assert [outcome.video_id for outcome in ledger.outcomes()] == [video for video, _ in videos]


def test_an_unknown_status_is_refused() -> None:
    with pytest.raises(ValueError, match="'lost'"):
        Outcome(video_id="v", status="lost")  # type: ignore[arg-type]


def test_a_missing_ledger_and_one_that_is_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="missing"):
        Ledger(tmp_path / "ledger.sqlite")
    (tmp_path / "ledger.sqlite").write_bytes(b"this is not a database" * 100)
    with pytest.raises(CacheError, match="not a database"):
        Ledger(tmp_path / "ledger.sqlite").counts()


def test_every_commit_is_synced(ledger: Ledger) -> None:
    with ledger.transaction() as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_claiming_looks_only_at_free_videos(ledger: Ledger) -> None:
    """The plan of the query that finds work uses the index over free videos and sorts nothing."""
    ledger.close()
    seen: list[str] = []
    with ledger.transaction() as connection:
        connection.set_trace_callback(seen.append)
    ledger.claim("a", 2, 60)
    queries = [query for query in seen if query.startswith("SELECT number, id, path")]
    assert len(queries) == 1
    plan = sqlite3.connect(ledger.path).execute(f"EXPLAIN QUERY PLAN {queries[0]}").fetchall()
    assert [row[3] for row in plan] == ["SCAN videos USING INDEX videos_free"]
