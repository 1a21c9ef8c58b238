"""FeatureCache: one dataset's features on disk. The only way in which other packages touch them."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cache.commit import StagedShard, commit_staged, recover, stage
from cache.common.errors import CacheError
from cache.contents import CacheContents
from cache.dataset import Dataset
from cache.description import Description, new_cache_id, read_description
from cache.fingerprint import JSON, Fingerprint, check_fingerprint
from cache.ledger import Claim, FileState, Outcome, Status
from cache.remote.address import WebAddress
from cache.remote.attachment import COPY_BYTES, RemoteCache, attach, find_cache, make_cache
from cache.remote.client import Location, Objects
from cache.remote.storage import open_storage
from cache.remote.web import parse_location
from cache.shards import Backend
from cache.shards.protocol import ShardData
from cache.shards.writer import ShardWriter
from cache.storage import Storage


class FeatureCache(CacheContents):
    """An open cache. Cheap to open; safe to read from several threads, and after a fork or pickling."""

    def __init__(self, storage: Storage) -> None:
        """Used by `open`."""
        super().__init__(storage)
        self._writer = ShardWriter()

    # -- open ---------------------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        dataset: Dataset,
        fingerprint: Fingerprint,
        settings: Mapping[str, JSON],
        backend: Backend = "h5",
        location: Location | None = None,
        converted_from: int = 0,
    ) -> "FeatureCache":
        """Make an empty cache at `path`, or at `location` in an object store with `path` as its working copy.

        Levels and views are the fingerprint's. Raises `CacheError` if `path` or a cache at `location` exists.
        """
        description = Description(
            backend=backend,
            fingerprint=fingerprint,
            settings=settings,
            cache_id=new_cache_id(),
            converted_from=converted_from,
        )
        make_cache(path, dataset, description, location)
        return cls.open(path)

    @classmethod
    def attach(
        cls, path: Path, location: Location | WebAddress | RemoteCache, copy_bytes: int = COPY_BYTES
    ) -> "FeatureCache":
        """Make `path` a working copy of the cache at `location`, unless it is one already, and open it.

        `copy_bytes` limits the bytes of all shards in it. Raises `CacheError` if there is no cache at `location`.
        """
        attach(path, location, copy_bytes)
        return cls.open(path)

    @classmethod
    def find(cls, path: Path, location: Location | WebAddress | RemoteCache | None) -> "FeatureCache | None":
        """Open the cache at `path`, or attach `path` to the one at `location`; None if there is neither.

        Raises `CacheError` if the cache at `path` is not the one at `location`.
        """
        if not (path / "cache.json").exists():
            if location is None or (isinstance(location, Location) and not find_cache(Objects(location))):
                return None
            return cls.attach(path, location)
        cache = cls.open(path)
        if location is not None and cache.storage.address != str(location):
            raise CacheError(
                f"the cache {path} is in {cache.storage.address or 'this folder alone'}, and {location} was asked for: "
                "leave CACHE= (--cache) out to go on with it, or choose another folder (WORK= or --work)"
            )
        # What was published since is taken only on request.
        return cache if location is None or isinstance(location, Location) else cls.attach(path, location)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "FeatureCache":
        """Open a cache to read. Raises `CacheError` if there is none, or one of another format."""
        path = Path(path)
        return cls(open_storage(path, read_description(path)))

    @classmethod
    def open_for_extraction(cls, path: Path, fingerprint: Fingerprint, allow_drift: bool = False) -> "FeatureCache":
        """Open a cache to add to it, and clear up after extractions that died.

        Raises `FingerprintError`, naming the fields, unless `fingerprint` agrees with the cache's.
        """
        cache = cls.open(path)
        if cache.read_only:
            raise CacheError(f"{path} is a working copy of {cache.storage.address}, a published cache: it is read only")
        check_fingerprint(cache.fingerprint, fingerprint, allow_drift=allow_drift, where=f"the cache {path}")
        try:
            cache.storage.acquire()
            cache.storage.catch_up()
            cache.recover()
        except BaseException:
            cache.close()
            raise
        return cache

    def __reduce__(self) -> tuple[Any, ...]:
        return (_reopened, (self.path, self.storage.address))

    def __enter__(self) -> "FeatureCache":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the writing process and close the ledger; both start again when they are needed."""
        self._writer.close()
        self.storage.close()

    # -- write --------------------------------------------------------------------------------------------------------

    @property
    def read_only(self) -> bool:
        """Whether it is a working copy of a published cache."""
        return self.storage.read_only

    @property
    def place(self) -> str:
        """Where the cache is kept and in which format, as text for the user."""
        return self.storage.place

    def free_bytes(self) -> int | None:
        """Free space for more features where the cache is kept; None if it is not limited (an object store)."""
        return self.storage.free_bytes()

    def recover(self) -> list[str]:
        """Clear up after extractions that died: free claims, adopt shards or set them aside. Returns what was done."""
        return recover(self.storage)

    def remember(self, settings: Mapping[str, JSON]) -> None:
        """Make `settings` part of those that later commands continue with; a cache in an object store keeps its own."""
        if not settings.items() <= self.settings.items():
            self.settings = {**self.settings, **settings}
            self.storage.remember(self.settings)

    def replace_dataset(self, dataset: Dataset) -> int:
        """Make `dataset` the one whose features these are. Returns how many of its videos are new.

        Features of videos that it does not have stay in their shards and nowhere else, until such a video comes back.
        """
        before = {video.id for video in self.dataset.videos}
        self.storage.replace_dataset(dataset)
        for stale in ("dataset", "_places"):
            self.__dict__.pop(stale, None)
        return len({video.id for video in dataset.videos} - before)

    def requeue(self, statuses: Sequence[Status] = (), videos: Sequence[str] = ()) -> int:
        """Make all videos of these statuses, and `videos`, pending again. Returns how many there were.

        Their features stay in the shards and nowhere else.
        """
        _ = self.ledger  # brings a working copy up to date
        count = self.storage.requeue(statuses, videos)
        self.__dict__.pop("_places", None)
        return count

    def accept(self, videos: Sequence[str]) -> int:
        """Make suspect `videos` done, with their reasons as notes. Returns how many: none in an object store."""
        return self.storage.accept(videos)

    def put_files(self, files: Mapping[str, FileState]) -> None:
        """Record the files of extracted videos as this machine has them now."""
        with self.ledger.transaction() as connection:
            self.ledger.put_files(connection, files)

    def commit(
        self, claim: Claim, data: ShardData | None, outcomes: Sequence[Outcome], environment: Mapping[str, JSON]
    ) -> None:
        """Put one shard and what became of its videos into the cache; on disk when this returns.

        `data` holds exactly the videos whose outcome is done or suspect; None if there are none. `environment` is the
        extraction's own, recorded with the shard. Raises `LeaseLostError` if the claim was taken over and `CacheError`
        if the disk refuses: then nothing of it is in the cache, and what was there before still is.
        """
        self.commit_staged(claim, self.stage(claim.token, data, outcomes, environment, keep=True))

    def stage(
        self,
        token: int,
        data: ShardData | None,
        outcomes: Sequence[Outcome],
        environment: Mapping[str, JSON],
        *,
        keep: bool = False,
    ) -> StagedShard:
        """The first half of `commit`, on any machine that sees the cache's folder or its object store.

        `token` is that of the claim on the videos. Nothing is in the cache until `commit_staged`. `keep`: if the shard
        goes to an object store, leave it on this machine too, where `commit_staged` finds it.
        """
        if data is not None and (data.widths != self.widths or data.index.num_views != len(self.views)):
            raise CacheError(
                f"a shard has levels {data.widths} and {data.index.num_views} views; "
                f"the cache {self.path} has {self.widths} and {len(self.views)}"
            )
        return stage(self.storage, self._writer, token, data, outcomes, environment, keep=keep)

    def commit_staged(self, claim: Claim, staged: StagedShard) -> None:
        """The second half of `commit`, by the holder of the claim."""
        commit_staged(self.storage, claim, staged)
        for stale in ("_places", "pool"):
            self.__dict__.pop(stale, None)


def _reopened(path: Path, address: str | None) -> FeatureCache:
    """The cache in another process; on a machine without the working copy, with a temporary one."""
    if address is None or path.exists():
        return FeatureCache.open(path)
    folder = tempfile.mkdtemp(prefix="mrrn-cache-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return FeatureCache.attach(Path(folder) / path.name, parse_location(address))
