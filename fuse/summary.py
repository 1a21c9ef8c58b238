"""results.json: a report's figures as JSON values, and when and by what they were made."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

from cache.aggregate import PAPER_WEIGHTS, log_loss
from cache.comparison import Comparison
from fuse.against import commonest, comparisons
from fuse.calibration import SCALED, Scaled, reliability
from fuse.portions import by_group, by_length
from fuse.results import MODELS, Results
from train.config import version_of

FORMAT: Final = 1
"""Format of results.json."""


@dataclass(frozen=True)
class Made:
    """When and by what an output was made."""

    version: str
    """Version of this program."""
    date: str
    """UTC, to the second, ISO 8601."""


def made_now() -> Made:
    """This program's version and the time."""
    return Made(version_of("mrrn"), datetime.now(UTC).isoformat(timespec="seconds"))


def summarise(results: Results, notes: Sequence[str], made: Made) -> dict[str, Any]:
    """Content of results.json: all figures as JSON values; accuracies and the paper's are fractions of the videos."""
    subset, searched, named = results.cache.dataset.subset, results.searched_weights, commonest(results)
    return {
        "format": FORMAT,
        "notes": list(notes),
        "dataset": results.dataset,
        "split": results.split,
        "pool": results.pool,
        "videos": len(results.video_ids),
        "clips": results.clips,
        "unread_share": results.unread_share,
        "missing_videos": _with_reasons(results.missing),
        "suspect_videos": _with_reasons(results.suspect),
        "doctor": {"test_copies_of_training": len(results.copies)} if results.cache.contents else None,
        "accuracy": {model: results.accuracy(model) for model in MODELS},
        "top5": {model: results.top5(model) for model in MODELS},
        "interval95": {model: asdict(results.interval(model)) for model in MODELS},
        "macro": {model: results.macro(model) for model in MODELS},
        "linear": results.linear,
        "linear_macro": results.linear_macro,
        "commonest_class": named and {"name": named[0], "accuracy": named[1]},
        "fused_against": {name: _comparison(compared) for name, compared in comparisons(results).items()},
        "fusion_weights": dict(PAPER_WEIGHTS),
        "searched": searched and {"fusion_weights": dict(searched), "accuracy": results.accuracy("searched")},
        "calibration": results.calibration and asdict(results.calibration),
        "none_of_these": results.refusals and asdict(results.refusals),
        "certainty": results.certainty,
        "reliability": {name: _reliability(results, name) for name in SCALED if name in results.models},
        "paper": {model: value for model, value in results.paper.items() if value is not None},
        "weights": results.weights,
        "subset": subset and asdict(subset),
        "classes": list(results.classes),
        "classes_in_one_half": results.cache.dataset.one_sided(results.split),
        # JSON has no NaN: a class without test videos has no accuracy.
        "per_class": {model: [None if x != x else x for x in results.per_class(model).tolist()] for model in MODELS},
        "confusion": results.confusion().tolist(),
        "fingerprint": {"identity": dict(results.cache.identity), "environment": dict(results.cache.environment)},
        "runs": {level: dict(run) for level, run in results.runs.items()},
        "cost": dict(results.cache.cost),
        "by_length": [asdict(part) for part in by_length(results)],
        "by_group": [asdict(part) for part in by_group(results)],
        "curves": {level: [asdict(epoch) for epoch in epochs] for level, epochs in results.curves.items()},
        "made": asdict(made),
    }


def _reliability(results: Results, name: Scaled) -> dict[str, Any]:
    """Calibration error, log loss and bins on the test videos, of probabilities as they are and calibrated."""
    kinds = {"raw": results.probabilities[name], "calibrated": results.calibrated(name)}
    found: dict[str, Any] = {}
    for kind, probabilities_NK in kinds.items():
        if probabilities_NK is None:
            found |= {f"ece_{kind}": None, f"log_loss_{kind}": None, f"bins_{kind}": []}
            continue
        error, bins = reliability(probabilities_NK, results.labels)
        loss = log_loss(probabilities_NK, results.labels)
        found |= {f"ece_{kind}": error, f"log_loss_{kind}": loss, f"bins_{kind}": list(map(asdict, bins))}
    return found


def _comparison(compared: Comparison) -> dict[str, Any]:
    return {
        "difference": compared.difference,
        "interval95": asdict(compared.interval),
        "only_fused_right": compared.test.only_first,
        "only_other_right": compared.test.only_second,
        "mcnemar_p": compared.test.p_value,
        "verdict": compared.verdict,
        "text": compared.text,
    }


def _with_reasons(reasons: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"id": video, "reason": reason} for video, reason in sorted(reasons.items())]
