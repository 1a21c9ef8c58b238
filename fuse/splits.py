"""The mean over a dataset's splits, from the reports of each."""

import json
from typing import Any

import numpy as np

from cache.dataset import SPLITS
from fuse.choice import Choice
from fuse.results import MODELS


def mean_over_splits(choice: Choice) -> str:
    """One line with each model's mean accuracy over the splits whose reports have this pooling and seed.

    Empty where fewer than two have. Reports of other caches than the last one's are left out.
    """
    summaries = [each for split in SPLITS if (each := _summary(choice, split)) is not None]
    wanted = (choice.pool, choice.seed)
    usable = [each for each in summaries if (each["pool"], each["runs"]["high"].get("seed")) == wanted]
    if len(usable) < 2 or any(each["fingerprint"] != usable[0]["fingerprint"] for each in usable):
        return ""
    means = {model: float(np.mean([each["accuracy"][model] for each in usable])) for model in MODELS}
    splits = ", ".join(str(each["split"]) for each in usable)
    return f"mean over splits {splits}: " + ", ".join(f"{model} {100 * mean:.2f} %" for model, mean in means.items())


def _summary(choice: Choice, split: int) -> dict[str, Any] | None:
    path = choice.workspace.report(choice.dataset, split) / "results.json"
    try:
        summary: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    return summary
