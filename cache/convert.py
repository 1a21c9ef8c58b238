"""Write a cache again in the other format, and prove that both hold the same."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cache.commit import ShardNotes
from cache.common.console import progress
from cache.common.errors import CacheError, DamageError
from cache.fingerprint import Level
from cache.ledger import Claim, Outcome, Place
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
        return len(made.video_ids)


def _fill(source: FeatureCache, made: FeatureCache, claim: Claim) -> None:
    """Commit the claimed videos that `source` has, one shard for each of its shards."""
    wanted = {video.id for video in claim.videos}
    outcomes = {o.video_id: o for o in source.ledger.outcomes() if o.video_id in wanted}
    places = _by_shard(source)
    with progress(f"converting to {made.backend}", len(places), "shards") as shown:
        for done, (number, stored) in enumerate(places.items(), 1):
            left = [place for place in stored if place.video_id in wanted]
            if left:
                claim = made.ledger.renew(claim, _LEASE_SECONDS)
                _convert_shard(source, number, left, made, claim, outcomes)
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


def _by_shard(cache: FeatureCache) -> dict[int, list[Place]]:
    """Places of the videos of each shard, in the shard's order."""
    found: dict[int, list[Place]] = {row.number: [] for row in cache.ledger.shards()}
    for place in sorted(cache.ledger.places(), key=lambda place: place.position):
        found[place.shard].append(place)
    return found


def _convert_shard(
    source: FeatureCache,
    number: int,
    places: list[Place],
    made: FeatureCache,
    claim: Claim,
    outcomes: Mapping[str, Outcome],
) -> None:
    shard = source.pool.shard(number)
    for place in places:
        shard.check_place(place)
    data = _selected(shard.reader, [place.position for place in places])
    environment = json.loads(ShardNotes.of(shard.reader.index).environment)
    made.commit(claim, data, [outcomes[place.video_id] for place in places], environment)


def _selected(reader: ShardReader, positions: list[int]) -> ShardData:
    """Some videos of a shard; all of them unless some were requeued."""
    whole = read_shard(reader)
    spans = [slice(*whole.offsets[i : i + 2]) for i in positions]
    frames = np.concatenate([np.arange(span.start, span.stop) for span in spans])
    features: dict[Level, np.ndarray] = {level: array[:, frames] for level, array in whole.features.items()}
    return ShardData(
        video_ids=tuple(whole.video_ids[i] for i in positions),
        offsets=np.concatenate([[0], np.cumsum([span.stop - span.start for span in spans])]),
        pts_seconds=whole.pts_seconds[frames],
        features=features,
    )


def prove_equal(one: FeatureCache, other: FeatureCache) -> None:
    """Raises `DamageError` naming the first difference in features, times or outcomes, compared bit by bit."""
    for mine, theirs in zip(one.ledger.outcomes(), other.ledger.outcomes(), strict=True):
        if mine != theirs:
            raise DamageError(f"{one.path} and {other.path} differ in the outcome of {mine.video_id!r}")
    with progress("comparing", len(one.video_ids), "videos") as shown:
        for done, video_id in enumerate(one.video_ids, 1):
            same = np.array_equal(one.pts_seconds(video_id), other.pts_seconds(video_id))
            for level in one.levels:
                for view in range(len(one.views)):
                    # Bytes, not numbers: a negative zero differs from a zero.
                    a, b = (cache.features(video_id, level, view).tobytes() for cache in (one, other))
                    same = same and a == b
            if not same:
                raise DamageError(f"{one.path} and {other.path} differ in the features of {video_id!r}")
            shown.update(done)
