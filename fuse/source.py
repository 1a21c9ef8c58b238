"""What fusion needs to know of the cache that scores come from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cache.dataset import Dataset
from cache.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Source:
    """What fusion needs to know of the cache that the scores come from."""

    dataset: Dataset
    identity: Mapping[str, Any]
    """Fingerprint fields that features depend on."""
    environment: Mapping[str, Any]
    """Fingerprint fields that say where they were computed."""
    video_ids: tuple[str, ...]
    """Videos that have features."""
    suspect: Mapping[str, str]
    """Videos whose decoding is in doubt, with the reason; they have features and are used."""
    failed: Mapping[str, str]
    """Videos without features, with the reason."""


def read_source(workspace: Workspace, dataset: str) -> Source:
    """Dataset, fingerprint and ledger of a finished cache; CacheError where there is none or videos are pending."""
    from cache.store import FeatureCache

    with FeatureCache.open(workspace.cache(dataset)) as cache:
        cache.require_finished()
        return Source(
            dataset=cache.dataset,
            identity=cache.fingerprint.identity,
            environment=cache.fingerprint.environment,
            video_ids=cache.video_ids,
            suspect={outcome.video_id: outcome.reason for outcome in cache.ledger.outcomes("suspect")},
            failed={outcome.video_id: outcome.reason for outcome in cache.ledger.outcomes("failed")},
        )
