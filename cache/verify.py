"""Whether a cache is as it was written. Reads every byte, writes nothing."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from cache.commit import ShardNotes, token_of
from cache.common.errors import DamageError, MrrnError
from cache.common.files import raise_if_unreadable
from cache.common.progress import progress
from cache.ledger import Outcome, Place, ShardRow
from cache.ledger.consistency import broken_structure, contradictions
from cache.shards import SUFFIXES, open_shard
from cache.shards.protocol import ShardReader, damaged_videos
from cache.storage import Finding, bytes_problem
from cache.store import FeatureCache

_THREADS = 4


def verify(path: Path) -> list[Finding]:
    """Returns all that is wrong with the cache in folder `path`; empty if everything is as it was written.

    Raises `UnreadableError` with the path if the system refuses to read something: that is not damage.
    """
    try:
        cache = FeatureCache.open(path)
    except MrrnError as error:
        raise_if_unreadable(error, path)
        if not path.is_dir():
            raise
        return [Finding(what=str(error))]
    found: list[Finding] = []
    with cache:
        try:
            found += [Finding(what=what, copy_only=True) for what in cache.storage.ledger_problems()]
            found += cache.storage.check()
            # The folder first: a shard that is committed in between is then known, and not taken for a stray.
            names = {entry.name for entry in (path / "shards").iterdir()}
            found += _verify_ledger(cache)
            rows, places = cache.ledger.shards(), cache.ledger.places()
            outcomes = {outcome.video_id: outcome for outcome in cache.ledger.outcomes()}
        except (MrrnError, ValueError, OSError) as error:
            raise_if_unreadable(error, path)
            return [*found, Finding(what=str(error))]
        found += _verify_dataset(cache)
        found += _verify_shards(cache, rows, places, outcomes)
        found += _strays(cache, names - {row.name for row in rows})
    return found


def _verify_ledger(cache: FeatureCache) -> Iterator[Finding]:
    with cache.ledger.reading() as connection:
        problems = broken_structure(connection)
        if problems:
            raise DamageError(f"{cache.ledger.path} is damaged: {'; '.join(problems)}")
        for what, ids in contradictions(connection):
            yield Finding(what=f"{len(ids)} videos: {what}", videos=tuple(ids))


def _verify_dataset(cache: FeatureCache) -> Iterator[Finding]:
    """dataset.json is readable, and the ledger has each of its videos, under the same path."""
    try:
        wanted = {(video.id, video.path) for video in cache.dataset.videos}
    except MrrnError as error:
        raise_if_unreadable(error, cache.path)
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
    of_shard: defaultdict[int, list[Place]] = defaultdict(list)
    for place in places:
        of_shard[place.shard].append(place)
    found: list[Finding] = []

    def check(row: ShardRow) -> Finding | None:
        stored = of_shard[row.number]
        problem = _problem(cache, row, stored, outcomes)
        videos = tuple(place.video_id for place in stored)
        return None if problem is None else Finding(what=f"shard {row.name}: {problem}", videos=videos, shard=row)

    total = sum(row.num_bytes for row in rows)
    with progress("verifying", round(total / 1e6), "MB") as shown, ThreadPoolExecutor(_THREADS) as threads:
        done = 0
        for row, finding in zip(rows, threads.map(check, rows), strict=True):
            found += [finding] if finding else []
            done += row.num_bytes
            shown.update(round(done / 1e6), f"{len(found)} damaged shards" if found else "")
    return found


def _problem(cache: FeatureCache, row: ShardRow, places: list[Place], outcomes: Mapping[str, Outcome]) -> str | None:
    """What is wrong with one shard where the cache is kept; None if nothing is."""
    if Path(row.name).suffix != SUFFIXES[cache.backend]:
        return f"it is not of this cache's format, {cache.backend}"
    try:
        with cache.storage.original(row) as path:
            # Bytes that are known to be damaged are kept away from the libraries that parse shards.
            if problem := bytes_problem(path, row):
                return problem
            if not row.name.split("-")[1].startswith(row.digest[:16]):
                return "its name does not contain its own hash"
            reader = open_shard(path, cache.backend)
            if damaged := damaged_videos(reader):
                return f"the features of {len(damaged)} videos do not match their checksums"
            return _disagreement(cache, row, reader, places, outcomes)
    except FileNotFoundError as error:
        return f"it cannot be read: {error.strerror}"
    except MrrnError as error:
        raise_if_unreadable(error, cache.path)
        return str(error)


def _disagreement(
    cache: FeatureCache, row: ShardRow, reader: ShardReader, places: list[Place], outcomes: Mapping[str, Outcome]
) -> str | None:
    """How an intact shard contradicts the ledger or the description; None if it does not."""
    index = reader.index
    if (index.content, index.num_videos, index.num_frames) != (row.content, row.num_videos, row.num_frames):
        return "its row in the ledger does not agree with its index"
    if reader.widths != cache.widths or index.num_views != len(cache.views):
        return f"it has levels {reader.widths} and {index.num_views} views, the cache {cache.widths} and {cache.views}"
    notes = ShardNotes.of(reader)
    if notes.fingerprint != cache.fingerprint.digest:
        return "its features come from other settings than the cache's"
    if notes.environment != row.environment:
        return "its environment in the ledger is not the one in its notes"
    for place in places:
        if place.position >= index.num_videos or index.video_ids[place.position] != place.video_id:
            return f"the ledger's place of {place.video_id!r} belongs to another of its videos"
        outcome = outcomes[place.video_id]
        noted = replace(notes.outcomes[place.position], seconds=outcome.seconds)
        if noted.is_header_doubt and outcome.status == "done":
            noted = replace(noted, status="done")  # accepted since: see `Ledger.accept`
        if noted != outcome or index.offsets[place.position + 1] - index.offsets[place.position] != outcome.num_frames:
            return f"the ledger's row of {place.video_id!r} does not agree with the shard's notes"
    return None


def _strays(cache: FeatureCache, names: set[str]) -> Iterator[Finding]:
    for name in sorted(name for name in names if not cache.storage.is_transfer(name)):
        what = "left over from an interrupted extraction; the next one clears it up"
        if token_of(name) is None:
            what = "not in the ledger, so nothing reads it; `mrrn cache repair` adopts it or sets it aside"
        yield Finding(what=f"{cache.path / 'shards' / name}: {what}", harmless=True)
