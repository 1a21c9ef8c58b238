"""Whether a cache is as it was written. Reads every byte, writes nothing."""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cache.commit import is_temporary
from cache.common.console import progress
from cache.common.errors import DamageError, MrrnError
from cache.ledger import Outcome, Place, ShardRow, broken_structure, odd_rows
from cache.remote.storage import damaged_copies, log_problems, orphans
from cache.remote.working_copy import is_coming
from cache.shards import SUFFIXES, open_shard
from cache.shards.protocol import ShardIndex, damaged_videos
from cache.shards.writer import hash_files
from cache.store import FeatureCache

_THREADS = 4


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is not as it was written."""

    what: str
    """A sentence for people."""
    videos: tuple[str, ...] = ()
    """Whose features or rows cannot be trusted."""
    shard: ShardRow | None = None
    """The shard that is damaged, where it is one."""
    harmless: bool = False
    """Something left over that no reader looks at."""
    here_only: bool = False
    """It is wrong in this working copy alone; the object store has it as it was written."""


def verify(path: Path) -> list[Finding]:
    """All that is wrong with the cache in folder `path`; nothing where it is as it was written."""
    try:
        cache = FeatureCache.open(path)
    except MrrnError as error:
        return [Finding(what=str(error))]
    found: list[Finding] = []
    with cache:
        try:
            if cache.remote is not None:
                found += _verify_remote(cache)
            # The folder first: a shard that is committed in between is then known, and not taken for a stray.
            names = {entry.name for entry in (path / "shards").iterdir()}
            found += _verify_ledger(cache)
            rows, places = cache.ledger.shards(), cache.ledger.places()
            outcomes = {outcome.video_id: outcome for outcome in cache.ledger.outcomes()}
        except (MrrnError, ValueError, OSError) as error:
            return [*found, Finding(what=str(error))]
        found += _verify_dataset(cache)
        found += _verify_shards(cache, rows, places, outcomes)
    found += _strays(path / "shards", names - {row.name for row in rows})
    return found


def _verify_remote(cache: FeatureCache) -> Iterator[Finding]:
    """The records lead to what is here, copies here are those in the store, and nothing in the store has no record."""
    assert cache.remote is not None
    for what in log_problems(cache):
        yield Finding(what=what, here_only=True)
    for row, what in damaged_copies(cache, cache.ledger.shards()):
        yield Finding(what=f"the copy of shard {row.name} here: {what}", shard=row, here_only=True)
    for orphan in orphans(cache):
        what = "no record speaks of it; `python -m cache repair` adopts or removes it"
        yield Finding(what=f"{cache.remote.location}/{orphan.name}: {what}", harmless=True)


def _verify_ledger(cache: FeatureCache) -> Iterator[Finding]:
    with cache.ledger.reading() as connection:
        problems = broken_structure(connection)
        if problems:
            raise DamageError(f"{cache.ledger.path} is damaged: {'; '.join(problems)}")
        for what, ids in odd_rows(connection):
            yield Finding(what=f"{len(ids)} videos: {what}", videos=tuple(ids))


def _verify_dataset(cache: FeatureCache) -> Iterator[Finding]:
    """dataset.json is readable, and the ledger has each of its videos, under the same path."""
    try:
        wanted = {(video.id, video.path) for video in cache.dataset.videos}
    except MrrnError as error:
        yield Finding(what=str(error))
        return
    with cache.ledger.reading() as connection:
        wanted.difference_update(connection.execute("SELECT id, path FROM videos"))
    if wanted:
        yield Finding(
            what=f"the ledger lacks {len(wanted)} videos of dataset.json, or has them under another path",
            videos=tuple(sorted(video_id for video_id, _ in wanted)),
        )


def _verify_shards(
    cache: FeatureCache, rows: list[ShardRow], places: list[Place], outcomes: Mapping[str, Outcome]
) -> list[Finding]:
    of_shard: dict[int, list[Place]] = {}
    for place in places:
        of_shard.setdefault(place.shard, []).append(place)
    found: list[Finding] = []

    def check(row: ShardRow) -> Finding | None:
        held = of_shard.get(row.number, [])
        problem = _problem(cache, row, held, outcomes)
        videos = tuple(place.video_id for place in held)
        return None if problem is None else Finding(what=f"shard {row.name}: {problem}", videos=videos, shard=row)

    total = sum(row.num_bytes for row in rows)
    with progress("verifying", round(total / 1e6), "MB") as shown, ThreadPoolExecutor(_THREADS) as threads:
        done = 0
        for row, finding in zip(rows, threads.map(check, rows), strict=True):
            found += [finding] if finding else []
            done += row.num_bytes
            shown.update(round(done / 1e6), f"{len(found)} damaged shards" if found else "")
    return found


def _problem(cache: FeatureCache, row: ShardRow, held: list[Place], outcomes: Mapping[str, Outcome]) -> str | None:
    """What is wrong with one shard, in words; None where nothing is."""
    if cache.remote is None:
        return _problem_of(cache, cache.path / "shards" / row.name, row, held, outcomes)
    try:
        # Every byte that the store has, not those that were copied here before.
        with cache.remote.copy.fresh(row) as path:
            return _problem_of(cache, path, row, held, outcomes)
    except MrrnError as error:
        return str(error)


def _problem_of(
    cache: FeatureCache, path: Path, row: ShardRow, held: list[Place], outcomes: Mapping[str, Outcome]
) -> str | None:
    if Path(row.name).suffix != SUFFIXES[cache.backend]:
        return f"it is not of this cache's format, {cache.backend}"
    try:
        written = hash_files(path)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    if written.num_bytes != row.num_bytes or written.digest != row.digest:
        # The library that parses shards is not let near bytes that are known to be damaged.
        return f"its bytes are not those that were written ({written.num_bytes} bytes, {row.num_bytes} were written)"
    if not row.name.split("-")[1].startswith(row.digest[:16]):
        return "its name does not carry its own hash"
    try:
        reader = open_shard(path, cache.backend)
        damaged = damaged_videos(reader)
    except MrrnError as error:
        return str(error)
    if damaged:
        return f"the features of {len(damaged)} videos do not have the checksums that stand beside them"
    return _disagreement(cache, row, reader.index, held, outcomes)


def _disagreement(
    cache: FeatureCache, row: ShardRow, index: ShardIndex, held: list[Place], outcomes: Mapping[str, Outcome]
) -> str | None:
    """Where an intact shard and the cache around it say different things."""
    if (index.content, index.num_videos, index.num_frames) != (row.content, row.num_videos, row.num_frames):
        return "the ledger says other things of it than it does itself"
    if index.levels != cache.levels or index.num_views != len(cache.views):
        return f"it has levels {index.levels} and {index.num_views} views, the cache {cache.levels} and {cache.views}"
    notes = json.loads(index.notes)
    if notes["fingerprint"] != cache.fingerprint.digest:
        return "its features come from other settings than the cache's"
    if notes["environment"] != row.environment:
        return "the ledger says of its surroundings something else than it does itself"
    for place in held:
        if place.position >= index.num_videos or index.video_ids[place.position] != place.video_id:
            return f"the ledger takes another of its videos for {place.video_id!r}"
        outcome = outcomes[place.video_id]
        noted = Outcome(**{**notes["outcomes"][place.position], "seconds": outcome.seconds})
        if noted != outcome or index.offsets[place.position + 1] - index.offsets[place.position] != outcome.num_frames:
            return f"the ledger says of {place.video_id!r} something else than the shard does"
    return None


def _strays(folder: Path, names: set[str]) -> Iterator[Finding]:
    for name in sorted(name for name in names if not is_coming(name)):
        what = "left over from an interrupted extraction; the next one clears it up"
        if not is_temporary(name):
            what = "the ledger does not list it, so nothing reads it; `python -m cache repair` adopts or removes it"
        yield Finding(what=f"{folder / name}: {what}", harmless=True)
