"""What a process has claimed itself."""

from itertools import pairwise
from types import SimpleNamespace

import pytest

from cache.ledger.database import free
from cache.processes import this_process
from extract import claims
from extract.claims import EXTRACTORS, GROW_BELOW_SECONDS, ClaimQueue
from extract.settings import CPU_DEFAULTS, GPU_DEFAULTS
from tests.helpers.cache import make_cache, make_fingerprint


def test_a_claim_of_videos_that_are_still_in_work_here_is_given_back(tmp_path):
    """As after another machine took this one for dead: else a video would be in two shards at a time."""
    with (
        make_cache(tmp_path / "cache", 6) as cache,
        ClaimQueue(cache, {}, make_fingerprint(), device="cpu") as queue,
    ):
        first = cache.ledger.claim(this_process(), 4, 120)
        assert next(queue.tasks(first)).claim == first
        with cache.ledger.transaction() as connection:
            free(connection, [first.token])
        again = cache.ledger.claim(this_process(), 4, 120)
        assert again.videos == first.videos
        assert list(queue.tasks(again)) == []
        assert cache.ledger.leases() == []


@pytest.mark.parametrize(("device", "pending"), [("cpu", 10**6), ("cuda", 10**6), ("cuda:1", 9_000)])
def test_a_gpus_claims_grow_to_half_a_minutes_work_at_most(tmp_path, monkeypatch, device, pending):
    """Each claim is given out before the one before it is done, as in a pipeline; 200 videos a second, later 20."""
    sizes, clock, rate = [], [1000.0], 200
    monkeypatch.setattr(claims, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    with (
        make_cache(tmp_path / "cache", 1) as cache,
        ClaimQueue(cache, {}, make_fingerprint(), device=device) as queue,
    ):

        def claim(_owner: str, limit: int, _seconds: float) -> SimpleNamespace:
            sizes.append(limit)
            videos = [SimpleNamespace(id=f"{len(sizes)}/{number}") for number in range(limit)]
            return SimpleNamespace(token=len(sizes), videos=videos)

        monkeypatch.setattr(cache.ledger, "claim", claim)
        monkeypatch.setattr(cache.ledger, "counts", lambda: {"pending": pending - sum(sizes)})
        monkeypatch.setattr(cache.ledger, "release", lambda _: None)
        given = queue.tasks(queue._claim())
        before = next(given)
        for number in range(24):
            task = next(given)
            clock[0] += len(before.claim.videos) / (rate if number < 16 else rate / 10)
            queue.submit(lambda: None, before.claim, last=True)
            queue.drain()
            before = task
    if device == "cpu":
        assert set(sizes) == {CPU_DEFAULTS.videos_per_claim}
        return
    smallest, first_slow = GPU_DEFAULTS.videos_per_claim, 17
    assert sizes[0] == smallest
    assert all(later <= 2 * earlier for earlier, later in pairwise(sizes))
    assert max(sizes) <= min(GPU_DEFAULTS.most_per_claim, max(smallest, pending // EXTRACTORS))
    assert max(sizes[:first_slow]) / rate <= 2 * GROW_BELOW_SECONDS
    assert max(sizes[:first_slow]) > 4 * smallest
    assert sizes[-1] / (rate / 10) <= 2 * GROW_BELOW_SECONDS


@pytest.mark.parametrize("owner", ["another-1", None])
def test_it_says_for_whom_it_waits_unless_it_is_itself(tmp_path, monkeypatch, owner):
    said: list[str] = []
    monkeypatch.setattr("extract.claims.say", said.append)
    with (
        make_cache(tmp_path / "cache", 4) as cache,
        ClaimQueue(cache, {}, make_fingerprint(), device="cpu") as queue,
    ):
        held = cache.ledger.claim(owner or this_process(), 4, 120)
        monkeypatch.setattr("extract.claims.time.sleep", lambda _: cache.ledger.release(held))
        assert queue.wait_for_claim().videos == held.videos
    assert [text.split(" (")[0] for text in said] == (["4 videos are with other extractors"] if owner else [])
