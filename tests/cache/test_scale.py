"""A million videos in the ledger: nothing that extraction does often grows with them."""

import resource
import time
from pathlib import Path

import pytest

from cache.ledger import Outcome, ShardRow
from cache.ledger.database import Ledger


def shard_row(number: int) -> ShardRow:
    return ShardRow(
        number=number,
        name=f"{number:06d}-{'0' * 16}.h5",
        digest="0" * 32,
        content="0" * 32,
        num_videos=64,
        num_frames=64,
        num_bytes=1,
        environment="{}",
    )


def claim_and_commit(ledger: Ledger, number: int) -> tuple[float, float]:
    """Seconds for one claim and one commit of 64 videos."""
    started = time.perf_counter()
    claim = ledger.claim("a", 64, 60)
    claimed = time.perf_counter()
    assert claim is not None
    outcomes = [Outcome(video_id=video.id, status="done", num_frames=1) for video in claim.videos]
    with ledger.transaction() as connection:
        ledger.check_claim(connection, claim)
        ledger.record(connection, claim.token, outcomes, shard_row(number))
    return claimed - started, time.perf_counter() - claimed


def median_seconds(path: Path, videos: int) -> tuple[float, float]:
    ledger = Ledger.create(
        path, ((f"class{i % 100:03d}/v{i:07d}", f"class{i % 100:03d}/v{i:07d}.avi") for i in range(videos))
    )
    times = sorted(claim_and_commit(ledger, number) for number in range(41))
    ledger.close()
    return times[20][0], sorted(commit for _, commit in times)[20]


@pytest.mark.slow
def test_claims_and_commits_cost_the_same_at_a_million_videos(tmp_path: Path) -> None:
    small_claim, small_commit = median_seconds(tmp_path / "small.sqlite", 5_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    large_claim, large_commit = median_seconds(tmp_path / "large.sqlite", 1_000_000)
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(  # shown by pytest -s
        f"claim {small_claim:.5f} {large_claim:.5f} s, commit {small_commit:.5f} {large_commit:.5f} s,"
        f" {grown_mib:.0f} MiB"
    )
    assert large_claim < 3 * small_claim + 0.005
    assert large_commit < 3 * small_commit + 0.005
    assert grown_mib < 100


@pytest.mark.slow
def test_resuming_with_nothing_to_do_takes_seconds_at_a_million_videos(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "l.sqlite", ((f"v{i:07d}", f"v{i:07d}.avi") for i in range(1_000_000)))
    with ledger.transaction() as connection:
        connection.execute(
            "UPDATE videos SET status = 'done', shard = number / 64, position = number % 64, num_frames = 1"
        )
    ledger.close()
    started = time.perf_counter()
    again = Ledger(tmp_path / "l.sqlite")
    assert again.claim("a", 64, 60) is None
    assert again.counts()["done"] == 1_000_000
    seconds = time.perf_counter() - started
    print(f"opened, nothing to claim, counted: {seconds:.2f} s")
    assert seconds < 10
    started = time.perf_counter()
    assert len(again.places()) == 1_000_000
    print(f"places of all videos: {time.perf_counter() - started:.2f} s")
