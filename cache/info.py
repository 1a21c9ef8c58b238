"""What a cache holds, as numbers and as text."""

from collections import Counter
from typing import Any

from cache.common.text import visible
from cache.ledger import Status
from cache.store import FeatureCache

_LISTED = 20
"""Videos listed of each status before the text says how many more there are."""

_NOTED = 3
"""Videos listed that are done with a note."""


def cache_info(cache: FeatureCache) -> dict[str, Any]:
    """Returns counts, sizes, settings and reasons as a JSON object."""
    shards = cache.ledger.shards()
    return {
        "path": str(cache.path),
        "location": cache.storage.address,
        "dataset": cache.dataset.name,
        "backend": cache.backend,
        "levels": cache.levels,
        "views": cache.views,
        "videos": cache.ledger.counts(),
        "frames": cache.ledger.num_frames(),
        "shards": len(shards),
        "bytes": sum(row.num_bytes for row in shards),
        "fingerprint": {"digest": cache.fingerprint.digest, **cache.fingerprint.to_json()},
        "settings": dict(cache.settings),
        "environments": Counter(row.environment for row in shards),
        "suspect": _reasons(cache, "suspect"),
        "failed": _reasons(cache, "failed"),
        "notes": [row for row in _reasons(cache, "done") if row["reason"]],
    }


def _reasons(cache: FeatureCache, status: Status) -> list[dict[str, str]]:
    return [{"video": outcome.video_id, "reason": outcome.reason} for outcome in cache.ledger.outcomes(status)]


def info_text(info: dict[str, Any]) -> str:
    """Returns the same as text for the user, with no character in it that a terminal would obey."""
    counts = ", ".join(f"{number:,} {status}" for status, number in info["videos"].items())
    where = f", a working copy of {info['location']}" if info["location"] else ""
    lines = [
        f"cache       {info['path']}{where}",
        f"dataset     {info['dataset']}",
        f"videos      {sum(info['videos'].values()):,}: {counts}",
        f"features    {info['frames']:,} frames, {', '.join(info['levels'])}; views {', '.join(info['views'])}",
        f"on disk     {info['bytes'] / 1e6:,.1f} MB in {info['shards']:,} shards ({info['backend']})",
        f"fingerprint {info['fingerprint']['digest']}",
    ]
    for part in ("identity", "environment"):
        lines += [f"  {name:<16} {value}" for name, value in info["fingerprint"][part].items()]
    if len(info["environments"]) > 1:
        lines.append("the shards were made in different environments:")
        lines += [f"  {number:,} shards: {text}" for text, number in info["environments"].items()]
    for status in ("suspect", "failed"):
        if videos := info[status]:
            lines += [f"{status}:", *(f"  {row['video']}: {row['reason']}" for row in videos[:_LISTED])]
        if len(videos) > _LISTED:
            lines.append(f"  and {len(videos) - _LISTED:,} more (--json lists all)")
    if notes := info["notes"]:
        lines += [
            f"done, with a note: {len(notes):,}, such as (--json lists all)",
            *(f"  {row['video']}: {row['reason']}" for row in notes[:_NOTED]),
        ]
    return "\n".join(map(visible, lines))
