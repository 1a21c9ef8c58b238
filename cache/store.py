"""FeatureCache: one dataset's features on disk. The only way in which other parts of the program touch them."""

import atexit
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.commit import Aside, Destination, commit_aside, recover, write_aside
from cache.common.errors import CacheError
from cache.dataset import Dataset, read_dataset, write_dataset
from cache.description import Description, create_cache, read_description
from cache.fingerprint import JSON, Fingerprint, Level, check_fingerprint
from cache.ledger import Claim, Ledger, Outcome, Place, Status
from cache.reading import FeatureBank, ShardPool, load_bank
from cache.remote.client import Location, Objects
from cache.remote.storage import COPY_BYTES, Attachment, Remote, find, publish, read_dataset_object, required
from cache.shards import Backend
from cache.shards.protocol import ShardData
from cache.shards.writer import ShardWriter


class FeatureCache:
    """An open cache. Cheap to open; safe to read from several threads, and after a fork or pickling."""

    def __init__(self, path: Path, description: Description, attachment: Attachment | None) -> None:
        """Used by `open`."""
        self.path = path
        self.fingerprint = description.fingerprint
        self.settings = description.settings
        """How extraction was asked for, so that the same can be continued."""
        self.backend = description.backend
        self.levels = description.levels
        self.views = description.views
        self.remote = None if attachment is None else Remote(path, attachment, self.fingerprint.digest)
        """The object store that has the cache, where the folder is a working copy; None where the folder has it all."""
        self._ledger = Ledger(path / "ledger.sqlite")
        self._writer = ShardWriter()

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
    ) -> "FeatureCache":
        """Make an empty cache at `path`, where nothing may be yet; levels and views are the fingerprint's.

        With a `location`, where nothing may be either, the cache is there, and `path` its working copy.
        """
        description = Description(backend=backend, fingerprint=fingerprint, settings=settings)
        if location is None:
            create_cache(path, dataset, description)
            return cls.open(path)
        publish(Objects(location), dataset, description)
        return cls.attach(path, location)

    @classmethod
    def attach(cls, path: Path, location: Location, copy_bytes: int = COPY_BYTES) -> "FeatureCache":
        """Make `path`, where nothing may be yet, a working copy of the cache in the object store, and open it.

        `copy_bytes`: what the shards in it may take together. CacheError where there is no cache at `location`.
        """
        objects = Objects(location)
        description, name = required(objects)
        dataset = read_dataset_object(objects, name)
        create_cache(path, dataset, description, Attachment.new(location, copy_bytes).write)
        return cls.open(path)

    @classmethod
    def find(cls, path: Path, location: Location | None) -> "FeatureCache | None":
        """The cache at `path`, or the one at `location`, which gets its working copy there; None where is none.

        CacheError where the cache at `path` is another one than that at `location`.
        """
        if not (path / "cache.json").exists():
            there = location is not None and find(Objects(location)) is not None
            return cls.attach(path, location) if location is not None and there else None
        cache = cls.open(path)
        if location is not None and (cache.remote is None or cache.remote.location != location):
            where = "this folder alone" if cache.remote is None else str(cache.remote.location)
            raise CacheError(
                f"the cache {path} is in {where}, and {location} was asked for: leave CACHE= (--cache) out to go on "
                "with it, or choose another folder (WORK= or --work)"
            )
        return cache

    @classmethod
    def open(cls, path: Path) -> "FeatureCache":
        """Open a cache to read; CacheError where there is none, or one of another format."""
        return cls(path, read_description(path), Attachment.read(path))

    @classmethod
    def open_for_extraction(cls, path: Path, fingerprint: Fingerprint, allow_drift: bool = False) -> "FeatureCache":
        """Open a cache to add to it, and clear up after extractions that died.

        FingerprintError, naming the fields, unless `fingerprint` agrees with the cache's.
        """
        cache = cls.open(path)
        check_fingerprint(cache.fingerprint, fingerprint, allow_drift=allow_drift, where=f"the cache {path}")
        try:
            if cache.remote is not None:
                cache.remote.take(read_description(path))
                cache.remote.catch_up(cache.ledger)
            recover(cache.destination)
        except BaseException:
            cache.close()
            raise
        return cache

    def __reduce__(self) -> tuple[Any, ...]:
        return (_reopened, (self.path, self.remote and self.remote.location))

    def __enter__(self) -> "FeatureCache":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the writing process and close the ledger; both come back when they are needed."""
        self._writer.close()
        if self.remote is not None and self.remote.lease.held:
            # What others of this machine have claimed, they will commit as the same driver.
            self.remote.lease.release(for_all=self._ledger.next_expiry() is None)
        self._ledger.close()

    @cached_property
    def ledger(self) -> Ledger:
        """What became of each video; of a cache in an object store, as its log says when this is first asked for."""
        if self.remote is not None:
            self.remote.catch_up(self._ledger)
        return self._ledger

    # -- what is in it ------------------------------------------------------------------------------------------------

    @cached_property
    def dataset(self) -> Dataset:
        """The dataset whose features these are; read when first asked for."""
        _ = self.ledger  # brings a working copy up to date
        return read_dataset(self.path / "dataset.json")

    @cached_property
    def _places(self) -> dict[str, Place]:
        return {place.video_id: place for place in self.ledger.places()}

    @property
    def places(self) -> list[Place]:
        """Where the features of each video are, in id order."""
        return list(self._places.values())

    @cached_property
    def pool(self) -> ShardPool:
        """The shards; for the parts of this folder that read whole ones."""
        rows = {row.number: row for row in self.ledger.shards()}
        return ShardPool(
            self.path / "shards", self.backend, rows, None if self.remote is None else self.remote.copy.fetch
        )

    @property
    def video_ids(self) -> tuple[str, ...]:
        """Ids of the videos that have features (done and suspect), in id order, as they were when first asked for."""
        return tuple(self._places)

    def num_frames(self, video_id: str) -> int:
        """Frames cached of a video; CacheError where it has none."""
        return self._place(video_id).num_frames

    def _place(self, video_id: str) -> Place:
        place = self._places.get(video_id)
        if place is None:
            raise CacheError(
                f"the cache {self.path} has no features of video {video_id!r}: it is not extracted yet, failed, or is "
                "not in the dataset. `python -m cache info` lists what became of the videos"
            )
        return place

    def require_finished(self) -> None:
        """CacheError where videos are still waiting to be extracted."""
        counts = self.ledger.counts()
        if counts["pending"]:
            raise CacheError(
                f"the cache {self.path} is unfinished: {counts['pending']:,} of {sum(counts.values()):,} videos are "
                f"not extracted yet. `make extract DATASET={self.dataset.name}` continues where it stopped"
            )

    # -- reading ------------------------------------------------------------------------------------------------------

    def features(
        self, video_id: str, level: Level, view: int = 0, start: int = 0, stop: int | None = None
    ) -> NDArray[np.float16]:
        """Frames `[start, stop)` of a video (all by default), `[F, C]`; DamageError where they are not as committed."""
        place = self._place(video_id)
        self._check_request(level, (view,))
        stop = place.num_frames if stop is None else stop
        if not 0 <= start <= stop <= place.num_frames:
            raise CacheError(f"video {video_id!r} has {place.num_frames} cached frames; [{start}, {stop}) is outside")
        return self.pool.shard(place.shard).features(place, level, view, start, stop)

    def pts_seconds(self, video_id: str) -> NDArray[np.float64]:
        """Time of each cached frame of a video, `[F]`."""
        place = self._place(video_id)
        index = self.pool.shard(place.shard).reader.index
        return index.pts_seconds[index.offsets[place.position] : index.offsets[place.position + 1]].copy()

    def load(
        self, level: Level, video_ids: Iterable[str], device: str = "cpu", views: Sequence[int] | None = None
    ) -> FeatureBank:
        """Features of whole videos in one tensor on `device`, in the order given, every checksum verified.

        `views` are numbers of views; None takes all. CacheError names videos without features.
        """
        views = range(len(self.views)) if views is None else views
        self._check_request(level, views)
        return load_bank(self.pool, level, [self._place(video_id) for video_id in video_ids], device, views)

    def _check_request(self, level: Level, views: Sequence[int]) -> None:
        if level not in self.levels:
            raise CacheError(f"the cache {self.path} has levels {', '.join(self.levels)}; got {level!r}")
        for view in views:
            if not 0 <= view < len(self.views):
                raise CacheError(
                    f"the cache {self.path} has {len(self.views)} views, {', '.join(self.views)}; got {view}"
                )

    # -- writing ------------------------------------------------------------------------------------------------------

    @property
    def destination(self) -> Destination:
        """Where commits go; for the parts of this folder that add shards and mend them."""
        return Destination(self.path / "shards", self.backend, self._ledger, self.fingerprint.digest, self.remote)

    def replace_dataset(self, dataset: Dataset) -> int:
        """Make `dataset` the one whose features these are; how many of its videos are new, and pending now.

        What was extracted stays, also of videos that `dataset` does not have.
        """
        before = sum(self.ledger.counts().values())
        if self.remote is not None:
            self.remote.replace_dataset(self.ledger, dataset)
        else:
            self.ledger.add(sorted((video.id, video.path) for video in dataset.videos))
            write_dataset(self.path / "dataset.json", dataset)
        self.__dict__.pop("dataset", None)
        return sum(self.ledger.counts().values()) - before

    def requeue(self, statuses: Sequence[Status]) -> int:
        """Make all videos of these statuses pending again; how many there were. Their old features are forgotten."""
        if self.remote is None:
            return self.ledger.requeue(statuses)
        counts = self.ledger.counts()
        self.remote.change(self.ledger, "retry", statuses=tuple(statuses))
        return sum(counts[status] for status in statuses)

    def commit(
        self, claim: Claim, data: ShardData | None, outcomes: Sequence[Outcome], environment: Mapping[str, JSON]
    ) -> None:
        """Put one shard and what became of its videos into the cache; on disk when this returns.

        `data` holds exactly the videos whose outcome is done or suspect; None where there are none. `environment` is
        the extraction's own, recorded with the shard. LeaseLostError where the claim was taken over by others,
        CacheError where the disk refuses: then nothing of it is in the cache, and what was there before still is.
        """
        self.commit_aside(claim, self.write_aside(claim.token, data, outcomes, environment, keep=True))

    def write_aside(
        self,
        token: int,
        data: ShardData | None,
        outcomes: Sequence[Outcome],
        environment: Mapping[str, JSON],
        *,
        keep: bool = False,
    ) -> Aside:
        """The first half of `commit`, for whoever computes: on any machine that sees the cache's folder or its store.

        `token` is that of the claim on the videos. Nothing of it is in the cache until `commit_aside`. `keep`: leave a
        shard that is in the object store on this machine too, where `commit_aside` finds it.
        """
        if data is not None and (data.index.levels != self.levels or data.index.num_views != len(self.views)):
            raise CacheError(
                f"a shard has levels {data.index.levels} and {data.index.num_views} views; "
                f"the cache {self.path} has {self.levels} and {len(self.views)}"
            )
        return write_aside(self.destination, self._writer, token, data, outcomes, environment, keep=keep)

    def commit_aside(self, claim: Claim, aside: Aside) -> None:
        """The second half of `commit`, for whoever holds the claim."""
        commit_aside(self.destination, claim, aside)
        for stale in ("_places", "pool"):
            self.__dict__.pop(stale, None)


def _reopened(path: Path, location: Location | None) -> FeatureCache:
    """The cache in another process; on another machine than the working copy's, with one of its own for as long."""
    if location is None or path.exists():
        return FeatureCache.open(path)
    folder = tempfile.mkdtemp(prefix="mrrn-cache-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return FeatureCache.attach(Path(folder) / path.name, location)
