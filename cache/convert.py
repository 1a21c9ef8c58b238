"""Write a cache again in the other format, and prove that both hold the same."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from cache.commit import ShardNotes
from cache.common.console import say
from cache.common.errors import CacheError, DamageError
from cache.common.progress import progress
from cache.ledger import LEASE_SECONDS, WITH_FEATURES, Claim, Outcome, Place
from cache.processes import host_and_pid, this_process
from cache.shards import Backend
from cache.shards.protocol import ShardData, ShardReader, read_shard
from cache.store import FeatureCache

_EVERYTHING = 1 << 40
"""As many videos as a claim may have."""


def convert(source: FeatureCache, target: Path, backend: Backend) -> int:
    """Make a cache at `target` with all that is in `source`, as `backend`. Returns how many videos have features there.

    Features, times, outcomes and environments are the same, and are compared once they are on disk. An interrupted
    conversion continues, and so does one whose source was extended or changed since. Raises `CacheError` if `target` is
    another cache and `DamageError` if `source` is damaged or differs.
    """
    with _open_target(source, target, backend) as made:
        copy_all(source, made)
        files = source.ledger.files()
        made.put_files({each: file for each in made.ledger.files() if (file := files.get(each)) is not None})
        return len(made.video_ids)


def copy_all(source: FeatureCache, made: FeatureCache) -> None:
    """Make `made` hold what `source` holds, and prove it; what is there already stays. They have the same dataset."""
    # What is extracted while this goes on is left to the next time.
    wanted = {outcome.video_id: outcome for outcome in source.ledger.outcomes() if outcome.status != "pending"}
    _forget_changed(source, made, wanted)
    there = sum(outcome.status != "pending" for outcome in made.ledger.outcomes())
    if 0 < there < len(wanted):
        say(f"going on: {there:,} of {len(wanted):,} videos are in {made.storage.address or made.path}")
    claim = made.ledger.claim(this_process(), _EVERYTHING, LEASE_SECONDS)
    if claim is not None:
        _fill(source, made, claim, wanted)
        made.ledger.release(claim)
    if others := [lease for lease in made.ledger.leases() if lease.num_videos]:
        raise CacheError(
            f"{', '.join(host_and_pid(lease.owner) for lease in others)} is at work on {made.path}: wait for it, or "
            f"look at `mrrn cache leases {made.path}`; then run the same command again"
        )
    prove_equal(source, made, wanted)


def _forget_changed(source: FeatureCache, made: FeatureCache, wanted: Mapping[str, Outcome]) -> None:
    """Make those videos of the target pending again that the source has otherwise, or not any more."""
    places = {place.video_id: place for place in source.places}
    made_places = {place.video_id: place for place in made.places}

    def changed(there: Outcome) -> bool:
        here = wanted.get(there.video_id)
        if here is None or _without_time(here) != _without_time(there):
            return True
        if there.status not in WITH_FEATURES:
            return False
        return _content(source, places[here.video_id]) != _content(made, made_places[here.video_id])

    stale = [there.video_id for there in made.ledger.outcomes() if there.status != "pending" and changed(there)]
    if stale:
        made.requeue(videos=stale)


def _without_time(outcome: Outcome) -> Outcome:
    """A shard that was adopted after a kill does not tell how long its videos were decoded."""
    return replace(outcome, seconds=0.0)


def _content(cache: FeatureCache, place: Place) -> tuple[bytes, bytes]:
    """What tells whether two caches have the same of a video: the checksums of its features, and its times."""
    index = cache.pool.shard(place.shard).reader.index
    return index.checksums[place.position].tobytes(), cache.pts_seconds(place.video_id).tobytes()


def _fill(source: FeatureCache, made: FeatureCache, claim: Claim, wanted: Mapping[str, Outcome]) -> None:
    """Commit the claimed ones of the `wanted` videos, one shard for each of the source's."""
    outcomes = {video.id: wanted[video.id] for video in claim.videos if video.id in wanted}
    places: dict[int, list[Place]] = {row.number: [] for row in source.ledger.shards()}
    for place in sorted(source.places, key=lambda place: place.position):
        places[place.shard].append(place)
    with progress(f"converting to {made.backend}", len(places), "shards") as shown:
        for done, (number, stored) in enumerate(places.items(), 1):
            left = [place for place in stored if place.video_id in outcomes]
            if left:
                made.ledger.renew(claim, LEASE_SECONDS)
                shard = source.pool.shard(number)
                for place in left:
                    shard.check_place(place)
                data = _selected(shard.reader, [place.position for place in left])
                environment = ShardNotes.of(shard.reader).environment_fields()
                made.commit(claim, data, [outcomes[place.video_id] for place in left], environment)
            shown.update(done)
    failed = [outcome for outcome in outcomes.values() if outcome.status == "failed"]
    if failed:
        made.commit(claim, None, failed, {})


def _open_target(source: FeatureCache, target: Path, backend: Backend) -> FeatureCache:
    cache_id = source.storage.description.cache_id
    if not target.exists():
        return FeatureCache.create(
            target,
            dataset=source.dataset,
            fingerprint=source.fingerprint,
            settings=source.settings,
            backend=backend,
            converted_from=cache_id,
        )
    made = FeatureCache.open_for_extraction(target, source.fingerprint)
    ours = cache_id and made.storage.description.converted_from == cache_id
    if made.backend != backend or made.storage.address or not (ours or made.dataset == source.dataset):
        raise CacheError(f"{target} is another cache ({made.backend}, {made.dataset.name}); choose a new folder")
    if made.dataset != source.dataset:
        made.replace_dataset(source.dataset)
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


def prove_equal(one: FeatureCache, other: FeatureCache, wanted: Mapping[str, Outcome]) -> None:
    """Raises `DamageError` naming the first difference in features, times or outcomes, compared bit by bit.

    `wanted`: the outcomes of `one` that are compared; `other` must have no others.
    """
    theirs = {outcome.video_id: outcome for outcome in other.ledger.outcomes() if outcome.status != "pending"}
    for video_id in sorted(wanted.keys() | theirs.keys()):
        mine, their = wanted.get(video_id), theirs.get(video_id)
        if mine is None or their is None or _without_time(mine) != _without_time(their):
            raise DamageError(f"{one.path} and {other.path} differ in the outcome of {video_id!r}")
    video_ids = [outcome.video_id for outcome in wanted.values() if outcome.status in WITH_FEATURES]
    with progress("comparing", len(video_ids), "videos") as shown:
        for done, video_id in enumerate(video_ids, 1):
            # Bytes, not numbers: a negative zero differs from a zero.
            same = all(
                one.features(video_id, level, view).tobytes() == other.features(video_id, level, view).tobytes()
                for level in one.levels
                for view in range(len(one.views))
            )
            if not same or not np.array_equal(one.pts_seconds(video_id), other.pts_seconds(video_id)):
                raise DamageError(f"{one.path} and {other.path} differ in the features of {video_id!r}")
            shown.update(done)
