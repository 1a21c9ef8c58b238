"""Whether the ledger's rows can all be true, and its file is whole. Reads only."""

import sqlite3
from collections.abc import Iterator

from cache.ledger import STATUSES, WITH_FEATURES

_ALL = ", ".join(f"'{status}'" for status in STATUSES)
_WITH_FEATURES = ", ".join(f"'{status}'" for status in WITH_FEATURES)

_CONTRADICTIONS = {
    "its status is unknown": f"status NOT IN ({_ALL})",
    "its row holds text where a number belongs, or the other way round": (
        "typeof(id) != 'text' OR typeof(path) != 'text' OR typeof(reason) != 'text'"
        " OR typeof(num_frames) != 'integer' OR typeof(decoder_errors) != 'integer' OR typeof(seconds) != 'real'"
        " OR typeof(shard) NOT IN ('integer', 'null') OR typeof(position) NOT IN ('integer', 'null')"
        " OR typeof(declared_frames) NOT IN ('integer', 'null') OR typeof(claim) NOT IN ('integer', 'null')"
    ),
    "it counts as extracted, but the ledger does not say where its features are": (
        f"status IN ({_WITH_FEATURES}) AND (shard IS NULL OR position IS NULL OR position < 0 OR num_frames < 1)"
    ),
    "it counts as not extracted, but the ledger says where its features are": (
        f"status NOT IN ({_WITH_FEATURES}) AND (shard IS NOT NULL OR position IS NOT NULL OR num_frames != 0)"
    ),
    "its features are in a shard that the ledger does not list": (
        "shard IS NOT NULL AND shard NOT IN (SELECT number FROM shards)"
    ),
    "another video has the same place in the same shard": (
        "shard IS NOT NULL AND (shard, position) IN"
        " (SELECT shard, position FROM videos WHERE shard IS NOT NULL GROUP BY shard, position HAVING count(*) > 1)"
    ),
    "it is claimed by a worker that the ledger does not list": (
        "claim IS NOT NULL AND claim NOT IN (SELECT token FROM claims)"
    ),
    "it is claimed, but not pending": "claim IS NOT NULL AND status != 'pending'",
}


def contradictions(connection: sqlite3.Connection) -> Iterator[tuple[str, list[str]]]:
    """Yields what is wrong with rows of videos, and the ids of those videos."""
    for what, where in _CONTRADICTIONS.items():
        ids = [str(row[0]) for row in connection.execute(f"SELECT id FROM videos WHERE {where} ORDER BY id")]
        if ids:
            yield what, ids


def broken_structure(connection: sqlite3.Connection) -> list[str]:
    """Returns what SQLite itself finds wrong with the file."""
    return [row[0] for row in connection.execute("PRAGMA integrity_check(20)") if row[0] != "ok"]
