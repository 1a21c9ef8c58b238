"""What became of the videos, in words."""

from itertools import islice

from cache.ledger import Status
from cache.store import FeatureCache

LISTED = 20
"""Videos listed of each status; `python -m cache info` has them all."""


def summarise(cache: FeatureCache) -> str:
    """Counts, then the failed and the suspect videos with their reasons."""
    counts = cache.ledger.counts()
    lines = [
        f"{sum(counts.values())} videos: {counts['done']} done, {counts['suspect']} suspect (used, but look at them), "
        f"{counts['failed']} failed" + (f", {counts['pending']} to do" if counts["pending"] else "")
    ]
    lines += _listed(cache, "failed", counts["failed"]) + _listed(cache, "suspect", counts["suspect"])
    if counts["failed"]:
        lines.append("--retry-failed tries the failed videos once more; --limit lets a video cost more than by default")
    return "\n".join(lines)


def _listed(cache: FeatureCache, status: Status, count: int) -> list[str]:
    lines = [
        f"  {status} {_safe(outcome.video_id)}: {_safe(outcome.reason)}"
        for outcome in islice(cache.ledger.outcomes(status), LISTED)
    ]
    return lines + ([f"  and {count - LISTED} more: `python -m cache info --json` lists all"] if count > LISTED else [])


def _safe(text: str) -> str:
    """Text from outside without control characters, which could rewrite the terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)
