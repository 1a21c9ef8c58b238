"""Extraction's side of the cache: claims videos, commits shards in the background, renews the leases."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final

from cache.common.console import say
from cache.common.errors import CacheError, LeaseLostError
from cache.fingerprint import Fingerprint
from cache.ledger import LEASE_SECONDS, Claim
from cache.processes import this_process
from cache.store import FeatureCache
from extract.settings import device_defaults
from extract.shards import ExtractTask, FinishedShard, shard_data

POLL_SECONDS: Final = 2.0
"""Between two looks at the ledger while others have all videos."""

COMMITS_AHEAD: Final = 2
"""Shards that may wait to be committed; while there are more, whoever brings the next one waits."""


GROW_BELOW_SECONDS: Final = 15.0
"""A claim that is done sooner is followed by one of twice its size, so that a claim, which a kill may cost, is at most
half a minute's work; one that takes twice as long, by one of half its size."""

EXTRACTORS: Final = 8
"""A grown claim takes at most this part of what is pending, so that other extractors find work to the end."""


class ClaimQueue:
    """A context manager: claims videos for this process, and holds the claims until their shards are committed."""

    def __init__(
        self,
        cache: FeatureCache,
        paths: Mapping[str, Path],
        made_with: Fingerprint,
        *,
        device: str,
    ) -> None:
        """`paths`: the file of each video that the dataset has now. `device`: decides how much is claimed at first."""
        self._cache, self._paths, self._made_with = cache, paths, made_with
        self._sizes = device_defaults(device)
        self._size = self._sizes.videos_per_claim
        self._owner = this_process()
        self._held: dict[int, Claim] = {}
        """Claims of which something is not committed yet, by token."""
        self._since: dict[int, float] = {}
        """When they were given out."""
        self._commits: list[Future[None]] = []
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._stop = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name="leases", daemon=True)

    def __enter__(self) -> "ClaimQueue":
        self._renewer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._writer.shutdown(wait=True, cancel_futures=True)
        self._stop.set()
        self._renewer.join()
        for claim in self._held.values():
            self._cache.ledger.release(claim)

    def wait_for_claim(self, *, siblings: bool = False) -> Claim | None:
        """The next claim; waits while other extractors have all videos. None once no video is left.

        Says for whom it waits, unless these are `siblings`: processes of the same command.
        """
        told = siblings
        while (claim := self._claim()) is None:
            if not self._cache.ledger.counts()["pending"]:
                return None
            theirs = sum(each.num_videos for each in self._cache.ledger.leases() if each.owner != self._owner)
            if theirs and not told:
                say(
                    f"{theirs:,} videos are with other extractors (`mrrn cache leases {self._cache.path}` lists "
                    "them); waiting, to take over what they leave"
                )
                told = True
            time.sleep(POLL_SECONDS)
        return claim

    def tasks(self, claim: Claim | None) -> Iterator[ExtractTask]:
        """`claim` with its files, then further claims while some videos are free; claims only when asked for more."""
        while claim is not None:
            if self._are_here(claim):
                # They were taken from an earlier claim of this process, which must end before they are done again.
                self._cache.ledger.release(claim)
                return
            self._held[claim.token], self._since[claim.token] = claim, time.monotonic()
            yield ExtractTask(claim, tuple(self._paths.get(video.id) for video in claim.videos))
            claim = self._claim()

    def commit(self, shard: FinishedShard) -> None:
        """Write and commit a shard in the background; waits while the disk is behind."""

        def commit() -> None:
            self._cache.commit(shard.claim, shard_data(shard.videos), shard.outcomes(), self._made_with.environment)

        self.submit(commit, shard.claim, last=shard.last)

    def submit(self, commit: Callable[[], None], claim: Claim, *, last: bool) -> None:
        """Call `commit`, which is for `claim`, in the background; after the `last` one the claim is done."""
        self._wait_for_commits(COMMITS_AHEAD - 1)
        self._commits.append(self._writer.submit(self._commit, commit, claim, last))

    def drain(self) -> None:
        """Wait until everything is committed; raises what went wrong."""
        self._wait_for_commits(0)

    def _claim(self) -> Claim | None:
        smallest, size = self._sizes.videos_per_claim, self._size
        if size > smallest:
            size = max(smallest, min(size, self._cache.ledger.counts()["pending"] // EXTRACTORS))
        return self._cache.ledger.claim(self._owner, size, LEASE_SECONDS)

    def _are_here(self, claim: Claim) -> bool:
        here = {video.id for held in list(self._held.values()) for video in held.videos}
        return any(video.id in here for video in claim.videos)

    def _wait_for_commits(self, allowed: int) -> None:
        while self._commits and (len(self._commits) > allowed or self._commits[0].done()):
            self._commits.pop(0).result()

    def _commit(self, commit: Callable[[], None], claim: Claim, last: bool) -> None:
        try:
            commit()
        except LeaseLostError as error:
            say(str(error))
        if last and claim.token in self._held:
            del self._held[claim.token]
            self._resize(len(claim.videos), time.monotonic() - self._since.pop(claim.token))

    def _resize(self, videos: int, seconds: float) -> None:
        """Choose the size of the next claims, now that one of so many videos took so long."""
        if videos >= self._size and seconds < GROW_BELOW_SECONDS:
            self._size = min(2 * self._size, self._sizes.most_per_claim)
        elif videos <= self._size and seconds > 2 * GROW_BELOW_SECONDS:
            self._size = max(self._size // 2, self._sizes.videos_per_claim)

    def _renew(self) -> None:
        """Renew all leases until told to stop. Errors are left to the commits, which meet and raise the same ones."""
        while not self._stop.wait(LEASE_SECONDS / 4):
            for claim in list(self._held.values()):
                with suppress(CacheError):
                    self._cache.ledger.renew(claim, LEASE_SECONDS)
