"""What a process has claimed itself."""

from cache.ledger import free
from cache.processes import this_process
from extract.claims import ClaimQueue
from tests.helpers.cache import make_cache, make_fingerprint


def test_a_claim_of_videos_that_are_still_in_work_here_is_given_back(tmp_path):
    """As after another machine took this one for dead: else a video would be in two shards at a time."""
    with (
        make_cache(tmp_path / "cache", 6) as cache,
        ClaimQueue(cache, {}, make_fingerprint(), device="cpu", say=print) as queue,
    ):
        first = cache.ledger.claim(this_process(), 4, 120)
        assert next(queue.tasks(first)).claim == first
        with cache.ledger.transaction() as connection:
            free(connection, [first.token])
        again = cache.ledger.claim(this_process(), 4, 120)
        assert again.videos == first.videos
        assert list(queue.tasks(again)) == []
        assert cache.ledger.leases() == []
