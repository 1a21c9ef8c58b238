"""What is in an open cache: its dataset, and the features and times of its videos. Reads only."""

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cache.common.errors import CacheError
from cache.dataset import Dataset, Half, Sample, read_dataset
from cache.fingerprint import LEVELS, Level, is_imported
from cache.ledger import Place
from cache.ledger.database import Ledger
from cache.reading import FeatureBank, ShardPool, load_bank
from cache.storage import Storage


class CacheContents:
    """The part of `FeatureCache` that reads. Safe to use from several threads, and after a fork."""

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

    def __repr__(self) -> str:
        levels = ", ".join(f"{level} {width}" for level, width in self.widths.items())
        identity, num_bytes = self.fingerprint.identity, sum(row.num_bytes for row in self.ledger.shards())
        return (
            f"FeatureCache({str(self.path)!r}: {len(self.video_ids):,} of {len(self.dataset.videos):,} videos of "
            f"{self.dataset.name}, {len(self.dataset.classes):,} classes; levels {levels}; views "
            f"{', '.join(self.views)}; {identity.get('backbone')}, weights {identity.get('weights')}; "
            f"{num_bytes / 1e6:,.1f} MB {self.backend})"
        )

    @cached_property
    def ledger(self) -> Ledger:
        """What became of each video; brought up to date when first asked for."""
        self.storage.catch_up()
        return self.storage.ledger

    @property
    def imported(self) -> bool:
        """Whether another program made the features."""
        return is_imported(self.fingerprint.identity)

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
