"""How long training takes on this machine, roughly: its multiplications, by the rate at which the device does them."""

import math
import time
from collections import defaultdict
from collections.abc import Iterable

import torch

from cache.clips import ClipRule
from cache.dataset import Sample
from train.config import RunConfig, precision_on
from train.recipes import LINEAR
from train.split import Split

PROBE_SECONDS = 0.2
"""For which products are timed."""

ABOVE_PRODUCTS = 1.5
"""A step's time by that of its products alone, for large heads."""

STEP_SECONDS = {"cpu": 10e-3, "cuda": 1e-4}
"""What a step takes beside its products, which decides for small heads."""

LINEAR_SECONDS = 3.0
"""A regression, with its features loaded."""


def expected_seconds(split: Split, configs: Iterable[RunConfig], device: torch.device) -> float:
    """Seconds to train all of `configs`, runs of `split`, one after the other or several at once."""
    flops: dict[torch.dtype, float] = defaultdict(float)
    rest = 0.0
    counts: dict[tuple[bool, bool, int, ClipRule], int] = {}
    for config in configs:
        recipe = config.recipe
        if recipe.cell == LINEAR:
            rest += LINEAR_SECONDS
            continue
        key = (config.holdout, config.watch, config.seed, recipe.clips)
        if key not in counts:
            learned, _ = split.learned_and_scored(holdout=config.holdout, seed=config.seed, watch=config.watch)
            counts[key] = sum(_clips(split, sample, recipe.clips) for sample in learned)
        steps = math.ceil(counts[key] / recipe.batch)
        steps *= recipe.epochs_for(steps)
        # A layer has some four products, each of them forward, and twice backward.
        inputs = [config.channels, *[recipe.hidden] * (recipe.layers - 1)]
        per_row = 2 * 3 * (4 * recipe.hidden * sum(inputs) + recipe.hidden * len(config.classes))
        dtype = torch.bfloat16 if precision_on(recipe, str(device)) == "bf16" else torch.float32
        flops[dtype] += steps * recipe.batch * recipe.clips.length * per_row
        rest += steps * STEP_SECONDS[device.type]
    products, slowed = 0.0, 1.0
    for dtype, count in flops.items():
        flops_per_second, slowed = _measured(device, dtype)
        products += ABOVE_PRODUCTS * count / flops_per_second
    return products + rest * slowed


def _clips(split: Split, sample: Sample, rule: ClipRule) -> int:
    frames = split.cache.frames_of(sample)
    if rule.fps is None:
        return rule.count(len(frames))
    return len(rule.frames(split.cache.pts_seconds(sample.video)[frames.start : frames.stop]))


def _measured(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Operations a second in products as a step has them, and how far other work slows this processor down."""
    left, right = (torch.ones(rows, 1024, device=device, dtype=dtype) for rows in (840, 1024))
    for attempt in range(2):  # the first one warms up
        count, started, busy = 0, time.monotonic(), time.process_time()
        while time.monotonic() - started < PROBE_SECONDS * attempt or not count:
            (left @ right).sum().item()
            count += 1
        seconds, busy = time.monotonic() - started, time.process_time() - busy
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    return 2 * left.numel() * right.shape[1] * count / seconds, max(1.0, threads * seconds / max(busy, 1e-3))
