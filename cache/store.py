"""FeatureCache: one dataset's features on disk. The only way in which other packages touch them."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.commit import StagedShard, commit_staged, recover, stage
from cache.common.errors import CacheError
from cache.dataset import Dataset, Half, Sample, read_dataset
from cache.description import Description, new_cache_id, read_description
from cache.fingerprint import JSON, LEVELS, Fingerprint, Level, check_fingerprint, is_imported
from cache.ledger import Claim, FileState, Outcome, Place, Status
from cache.ledger.database import Ledger
from cache.reading import FeatureBank, ShardPool, load_bank
from cache.remote.address import WebAddress
from cache.remote.attachment import COPY_BYTES, RemoteCache, attach, find_cache, make_cache
from cache.remote.client import Location, Objects
from cache.remote.storage import open_storage
from cache.remote.web import parse_location
from cache.shards import Backend
from cache.shards.protocol import ShardData
from cache.shards.writer import ShardWriter
from cache.storage import Storage


class FeatureCache:
    """An open cache. Cheap to open; safe to read from several threads, and after a fork or pickling."""

    def __init__(self, storage: Storage) -> None:
        """Used by `open`."""
        self.storage = storage
        """For the other modules of this package."""
        self.path = storage.folder
        self.fingerprint = storage.description.fingerprint
        self.settings = storage.description.settings
        """Options that the extraction was started with, so that it can be continued."""
        self.backend = storage.description.backend
        self.levels = storage.description.levels
        self.widths = storage.description.widths
        """Channels of each level."""
        self.views = storage.description.views
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

    def __repr__(self) -> str:
        levels = ", ".join(f"{level} {width}" for level, width in self.widths.items())
        identity, num_bytes = self.fingerprint.identity, sum(row.num_bytes for row in self.ledger.shards())
        return (
            f"FeatureCache({str(self.path)!r}: {len(self.video_ids):,} of {len(self.dataset.videos):,} videos of "
            f"{self.dataset.name}, {len(self.dataset.classes):,} classes; levels {levels}; views "
            f"{', '.join(self.views)}; {identity.get('backbone')}, weights {identity.get('weights')}; "
            f"{num_bytes / 1e6:,.1f} MB {self.backend})"
        )

    def __enter__(self) -> "FeatureCache":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the writing process and close the ledger; both start again when they are needed."""
        self._writer.close()
        self.storage.close()

    @cached_property
    def ledger(self) -> Ledger:
        """What became of each video; brought up to date when first asked for."""
        self.storage.catch_up()
        return self.storage.ledger

    # -- contents -----------------------------------------------------------------------------------------------------

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
        """The shards; for modules of this package that read whole ones."""
        rows = {row.number: row for row in self.ledger.shards()}
        return ShardPool(self.path / "shards", self.storage.description, rows, self.storage.fetch)

    @property
    def video_ids(self) -> tuple[str, ...]:
        """Ids of the videos that have features (done and suspect), in id order, as of the first call."""
        return tuple(self._places)

    def num_frames(self, video_id: str) -> int:
        """Frames cached of a video. Raises `CacheError` if it has none."""
        return self._place(video_id).num_frames

    def _place(self, video_id: str) -> Place:
        place = self._places.get(video_id)
        if place is None:
            raise CacheError(
                f"the cache {self.path} has no features of video {video_id!r}: it is not extracted yet, failed, or is "
                "not in the dataset. `mrrn cache info` lists what became of the videos"
            )
        return place

    def require_finished(self) -> None:
        """Raises `CacheError` if videos are still pending."""
        counts = self.ledger.counts()
        if counts["pending"]:
            command = "the same `mrrn cache import`" if self.imported else f"`make extract DATASET={self.dataset.name}`"
            raise CacheError(
                f"the cache {self.path} is unfinished: {counts['pending']:,} of {sum(counts.values()):,} videos are "
                f"not extracted yet. {command} continues where it stopped"
            )

    # -- read ---------------------------------------------------------------------------------------------------------

    def features(
        self, video_id: str, level: Level, view: int = 0, start: int = 0, stop: int | None = None
    ) -> NDArray[np.float16]:
        """Frames `[start, stop)` of a video (all by default), `[F, C]`. Raises `DamageError` if they were damaged."""
        place = self._place(video_id)
        self.check_request(level, (view,))
        stop = place.num_frames if stop is None else stop
        if not 0 <= start <= stop <= place.num_frames:
            raise CacheError(f"video {video_id!r} has {place.num_frames} cached frames; [{start}, {stop}) is outside")
        return self.pool.shard(place.shard).features(place, level, view, start, stop)

    def means(
        self, level: Level, half: Half, *, split: int = 1, view: int = 0
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], tuple[str, ...]]:
        """The mean feature of each sample of one half, `[N, C]`, the index of its class, `[N]`, and its id.

        Over all cached frames of the sample. Samples without features (failed videos) or without a class are not among
        them. Raises `CacheError` if videos are still pending.
        """
        self.require_finished()
        self.check_request(level, (view,))
        rows, labels, ids = [np.empty((0, self.widths[level]), dtype=np.float32)], [], []
        for sample in self.dataset.half(split, half):
            frames = self.frames_of(sample)
            if frames and sample.label is not None:
                span_FC = self.features(sample.video, level, view, frames.start, frames.stop)
                rows.append(span_FC.mean(axis=0, dtype=np.float32, keepdims=True))
                labels.append(sample.label)
                ids.append(sample.id)
        return np.concatenate(rows), np.asarray(labels, dtype=np.int64), tuple(ids)

    def contents(self) -> dict[str, bytes]:
        """For each video the checksums of its features: equal for equal features. Reads no features.

        Empty for a working copy, whose shards would have to be fetched.
        """
        if self.storage.address is not None:
            return {}
        found = {}
        for place in sorted(self.places, key=lambda place: place.shard):
            index = self.pool.shard(place.shard).reader.index
            found[place.video_id] = index.checksums[place.position].tobytes()
        return found

    def pts_seconds(self, video_id: str) -> NDArray[np.float64]:
        """Time of each cached frame of a video in seconds, `[F]`."""
        place = self._place(video_id)
        index = self.pool.shard(place.shard).reader.index
        return index.pts_seconds[index.offsets[place.position] : index.offsets[place.position + 1]].copy()

    def frames_of(self, sample: Sample) -> range:
        """Cached frames of a sample, counted in its video: those whose time is in its span, all without a span.

        Empty if the video has no features, or no frame in the span.
        """
        place = self._places.get(sample.video)
        if place is None:
            return range(0)
        if sample.span is None:
            return range(place.num_frames)
        # Times are stored rounded: a microsecond keeps a frame at 0.04 s in a span that begins there.
        first, stop = np.searchsorted(self.pts_seconds(sample.video), np.asarray(sample.span) - 1e-6).tolist()
        return range(first, stop)

    def load(
        self, level: Level, video_ids: Iterable[str], device: str = "cpu", views: Sequence[int] | None = None
    ) -> FeatureBank:
        """Features of whole videos in one tensor on `device`, in the order given, every checksum verified.

        `views` are numbers of views; None takes all. Raises `CacheError` naming a video without features.
        """
        views = range(len(self.views)) if views is None else views
        self.check_request(level, views)
        return load_bank(self.pool, level, [self._place(video_id) for video_id in video_ids], device, views)

    def require_levels(self) -> None:
        """Raises `CacheError` unless the cache has all three levels."""
        if missing := [level for level in LEVELS if level not in self.levels]:
            raise CacheError(
                f"the cache {self.path} has no level {', '.join(missing)}, and fusion is of {', '.join(LEVELS)}; one "
                f"alone is trained and scored by LEVEL={self.levels[-1]} (--level {self.levels[-1]})"
            )

    def check_request(self, level: Level, views: Sequence[int]) -> None:
        """Raises `CacheError` unless the cache has this level and the views of these numbers."""
        if level not in self.levels:
            raise CacheError(
                f"the cache {self.path} has levels {', '.join(self.levels)}; got {level!r}: choose another by LEVEL= "
                f"(--level), in a sweep by --grid level={self.levels[-1]}"
            )
        for view in views:
            if not 0 <= view < len(self.views):
                raise CacheError(
                    f"the cache {self.path} has no view {view}; it has "
                    + ", ".join(f"{number} ({name})" for number, name in enumerate(self.views))
                )

    # -- write --------------------------------------------------------------------------------------------------------

    @property
    def imported(self) -> bool:
        """Whether another program made the features."""
        return is_imported(self.fingerprint.identity)

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
