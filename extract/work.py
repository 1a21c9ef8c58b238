"""Extraction's side of the cache: claims videos, commits finished ones in the background, keeps the leases alive."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final

from cache.errors import LeaseLostError
from cache.fingerprint import Fingerprint
from cache.ledger import Claim, Outcome
from cache.owner import this_process
from cache.store import FeatureCache
from extract.device import shard_rows, videos_per_claim
from extract.pipeline import VideoFeatures, failed
from extract.shards import Group, shard_data

LEASE_SECONDS: Final = 120.0
"""How long videos stay taken by an extractor that gives no sign of life (one that died on this machine loses them at
once)."""

COMMITS_AHEAD: Final = 2
"""Shards that may wait for the disk before the network has to."""

VANISHED: Final = "the file is no longer where the data set is"


class Work:
    """A context manager: the videos that this process has taken from the cache and not yet committed."""

    def __init__(
        self,
        cache: FeatureCache,
        paths: Mapping[str, Path],
        made_with: Fingerprint,
        *,
        device: str,
        strict: bool,
        say: Callable[[str], None],
    ) -> None:
        """`paths`: the file of each video that the data set has now. `device`: decides how much is claimed and
        committed at once. `strict`: suspect videos count as failed."""
        self._cache, self._paths, self._made_with = cache, paths, made_with
        self._device, self._strict, self._say = device, strict, say
        self._owner = this_process()
        self._groups: dict[str, Group] = {}
        """Of each video that is not finished."""
        self._held: dict[int, Claim] = {}
        """By token: claims of which something is not committed."""
        self._commits: list[Future[None]] = []
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._stop = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name="leases", daemon=True)
        self.finished = 0
        """Videos that came out of the network or failed, in this run."""
        self.failed = 0

    def __enter__(self) -> "Work":
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

    def wait_for_claim(self) -> Claim | None:
        """Videos to work on; while other extractors have them all, waits. None once no video is left."""
        told = False
        while (claim := self._claim()) is None:
            pending = self._cache.ledger.counts()["pending"]
            if not pending:
                return None
            if not told:
                self._say(f"{pending} videos are with other extractors; waiting, to take over what they leave")
                told = True
            time.sleep(min(2.0, max(0.1, (self._cache.ledger.next_expiry() or 0.0) - time.time())))
        return claim

    def videos(self, claim: Claim | None) -> Iterator[tuple[str, Path]]:
        """The videos of `claim`, then of further claims for as long as some are free. Claims as it is drawn from."""
        while claim is not None:
            group = Group(claim, shard_rows(self._device))
            self._held[claim.token] = claim
            self._groups |= {video.id: group for video in claim.videos}
            for video in claim.videos:
                if path := self._paths.get(video.id):
                    yield video.id, path
                else:
                    self.add(failed(Outcome(video_id=video.id, status="failed"), VANISHED))
            claim = self._claim()

    def add(self, video: VideoFeatures) -> None:
        """Take a finished video; what completes a shard is committed. Waits while the disk is behind."""
        outcome = video.outcome
        if self._strict and outcome.status == "suspect":
            video = failed(outcome, f"left out by --strict: {outcome.reason}")
        self.finished += 1
        self.failed += video.outcome.status == "failed"
        group = self._groups.pop(outcome.video_id)
        for shard in group.add(video):
            self._wait_for_commits(COMMITS_AHEAD - 1)
            self._commits.append(self._writer.submit(self._commit, group, shard))

    def drain(self) -> None:
        """Wait until everything is on disk; raises what went wrong."""
        self._wait_for_commits(0)

    def _claim(self) -> Claim | None:
        return self._cache.ledger.claim(self._owner, videos_per_claim(self._device), LEASE_SECONDS)

    def _wait_for_commits(self, allowed: int) -> None:
        while self._commits and (len(self._commits) > allowed or self._commits[0].done()):
            self._commits.pop(0).result()

    def _commit(self, group: Group, videos: list[VideoFeatures]) -> None:
        outcomes = [video.outcome for video in videos]
        try:
            self._cache.commit(group.claim, shard_data(videos), outcomes, self._made_with.environment)
        except LeaseLostError as error:
            self._say(str(error))
        if group.complete:
            self._held.pop(group.claim.token, None)

    def _renew(self) -> None:
        """Put off the end of all leases, until told to stop. A lost one is found out by its commit."""
        while not self._stop.wait(LEASE_SECONDS / 4):
            for claim in list(self._held.values()):
                with suppress(LeaseLostError):
                    self._cache.ledger.renew(claim, LEASE_SECONDS)
