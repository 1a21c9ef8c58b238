"""results.json: what other programs read of a report."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from cache.aggregate import PAPER_WEIGHTS
from fuse import metrics, paper
from fuse.results import MODELS, Results

FORMAT = 1


@dataclass(frozen=True)
class Made:
    """When and by what an output was made."""

    version: str
    """Of this program."""
    date: str
    """UTC, to the second, ISO 8601."""


def made_now() -> Made:
    """This program's version and the time."""
    return Made(importlib.metadata.version("mrrn"), datetime.now(UTC).isoformat(timespec="seconds"))


def summarise(results: Results, notes: Sequence[str], made: Made) -> dict[str, Any]:
    """All figures as plain JSON values; accuracies and the paper's figures are fractions of the test videos."""
    return {
        "format": FORMAT,
        "notes": list(notes),
        "dataset": results.dataset,
        "split": results.split,
        "pool": results.pool,
        "videos": len(results.video_ids),
        "clips": results.clips,
        "missing_videos": _with_reasons(results.missing),
        "suspect_videos": _with_reasons(results.suspect),
        "accuracy": {model: results.accuracy(model) for model in MODELS},
        "top5": {model: results.top5(model) for model in MODELS},
        "interval95": {model: asdict(metrics.accuracy_interval(results.correct[model])) for model in MODELS},
        "fused_against_high": fused_against_high(results),
        "fusion_weights": dict(PAPER_WEIGHTS),
        "searched": _searched(results),
        "paper": _paper_fractions(results),
        "weights": results.weights,
        "subset": asdict(results.source.dataset.subset) if results.source.dataset.subset else None,
        "classes": list(results.classes),
        "per_class": {model: [_number(value) for value in results.per_class(model)] for model in MODELS},
        "confusion": results.confusion().tolist(),
        "fingerprint": {"identity": dict(results.source.identity), "environment": dict(results.source.environment)},
        "runs": {level: own_fields(run) for level, run in results.runs.items()},
        "made": asdict(made),
    }


def fused_against_high(results: Results) -> dict[str, Any]:
    """What fusing adds to the high level alone: points with interval, and McNemar's exact test."""
    fused, high = results.correct["fused"], results.correct["high"]
    return {
        "difference": results.accuracy("fused") - results.accuracy("high"),
        "interval95": asdict(metrics.difference_interval(fused, high)),
        "only_fused_right": (test := metrics.mcnemar(fused, high)).only_first,
        "only_high_right": test.only_second,
        "mcnemar_p": test.p_value,
    }


def _searched(results: Results) -> dict[str, Any] | None:
    """Fusion weights found on held-out training videos, and the test accuracy with them."""
    if results.searched_weights is None:
        return None
    return {"fusion_weights": dict(results.searched_weights), "accuracy": results.accuracy("searched")}


def _paper_fractions(results: Results) -> dict[str, float]:
    """The paper's figures as fractions; empty for a dataset that it does not use."""
    if results.dataset not in paper.DATASETS:
        return {}
    return {model: round(value / 100, 6) for model, value in results.paper.items() if value is not None}


def _with_reasons(reasons: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"id": video, "reason": reason} for video, reason in sorted(reasons.items())]


def own_fields(run: Mapping[str, Any]) -> dict[str, Any]:
    """What a run says of itself; the fingerprint, equal for all, stands apart."""
    return {name: value for name, value in run.items() if name != "fingerprint"}


def _number(value: float) -> float | None:
    """JSON has no NaN: a class without test videos has no accuracy."""
    return None if value != value else float(value)
