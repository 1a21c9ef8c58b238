"""Write a cache again in the other format, and prove that both hold the same."""

import json
from pathlib import Path

import numpy as np

from cache.commit import ShardNotes
from cache.common.console import progress
from cache.common.errors import CacheError, DamageError
from cache.ledger import Claim, Place
from cache.processes import this_process
from cache.shards import Backend
from cache.shards.protocol import ShardData, ShardReader, read_shard
from cache.store import FeatureCache

_LEASE_SECONDS = 3600.0
_EVERYTHING = 1 << 40
"""As many videos as a claim may have."""


def convert(source: FeatureCache, target: Path, backend: Backend) -> int:
    """Make a cache at `target` with all that is in `source`, as `backend`. Returns how many videos have features there.

    Features, times, outcomes and environments are the same, and are compared once they are on disk. An interrupted
    conversion continues. Raises `CacheError` if `target` is another cache and `DamageError` if `source` is damaged or
    differs.
    """
    with _open_target(source, target, backend) as made:
        claim = made.ledger.claim(this_process(), _EVERYTHING, _LEASE_SECONDS)
        if claim is not None:
            _fill(source, made, claim)
            made.ledger.release(claim)
        prove_equal(source, made)
        made.put_files({video: file for video, file in source.ledger.files().items() if file})
        return len(made.video_ids)


def _fill(source: FeatureCache, made: FeatureCache, claim: Claim) -> None:
    """Commit the claimed videos that `source` has, one shard for each of its shards."""
    wanted = {video.id for video in claim.videos}
    outcomes = {o.video_id: o for o in source.ledger.outcomes() if o.video_id in wanted}
    places: dict[int, list[Place]] = {row.number: [] for row in source.ledger.shards()}
    for place in sorted(source.ledger.places(), key=lambda place: place.position):
        places[place.shard].append(place)
    with progress(f"converting to {made.backend}", len(places), "shards") as shown:
        for done, (number, stored) in enumerate(places.items(), 1):
            left = [place for place in stored if place.video_id in wanted]
            if left:
                claim = made.ledger.renew(claim, _LEASE_SECONDS)
                shard = source.pool.shard(number)
                for place in left:
                    shard.check_place(place)
                data = _selected(shard.reader, [place.position for place in left])
                environment = json.loads(ShardNotes.of(shard.reader.index).environment)
                made.commit(claim, data, [outcomes[place.video_id] for place in left], environment)
            shown.update(done)
    failed = [outcome for outcome in outcomes.values() if outcome.status == "failed"]
    if failed:
        made.commit(claim, None, failed, {})


def _open_target(source: FeatureCache, target: Path, backend: Backend) -> FeatureCache:
    if not target.exists():
        return FeatureCache.create(
            target,
            dataset=source.dataset,
            fingerprint=source.fingerprint,
            settings=source.settings,
            backend=backend,
        )
    made = FeatureCache.open_for_extraction(target, source.fingerprint)
    if made.backend != backend or made.dataset != source.dataset:
        raise CacheError(f"{target} is another cache ({made.backend}, {made.dataset.name}); choose a new folder")
    return made


def _selected(reader: ShardReader, positions: list[int]) -> ShardData:
    """Some videos of a shard; all of them unless some were requeued."""
    whole = read_shard(reader)
    frames = [np.arange(*whole.offsets[i : i + 2]) for i in positions]
    chosen = np.concatenate(frames)
    return ShardData(
        video_ids=tuple(whole.video_ids[i] for i in positions),
        offsets=np.cumsum([0, *map(len, frames)]),
        pts_seconds=whole.pts_seconds[chosen],
        features={level: array[:, chosen] for level, array in whole.features.items()},
    )


def prove_equal(one: FeatureCache, other: FeatureCache) -> None:
    """Raises `DamageError` naming the first difference in features, times or outcomes, compared bit by bit."""
    for mine, theirs in zip(one.ledger.outcomes(), other.ledger.outcomes(), strict=True):
        if mine != theirs:
            raise DamageError(f"{one.path} and {other.path} differ in the outcome of {mine.video_id!r}")
    with progress("comparing", len(one.video_ids), "videos") as shown:
        for done, video_id in enumerate(one.video_ids, 1):
            # Bytes, not numbers: a negative zero differs from a zero.
            same = all(
                one.features(video_id, level, view).tobytes() == other.features(video_id, level, view).tobytes()
                for level in one.levels
                for view in range(len(one.views))
            )
            if not same or not np.array_equal(one.pts_seconds(video_id), other.pts_seconds(video_id)):
                raise DamageError(f"{one.path} and {other.path} differ in the features of {video_id!r}")
            shown.update(done)
