"""Hand-made score tables and the caches they belong to."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cache.dataset import Dataset, Half, Subset
from cache.fingerprint import LEVELS, Level
from cache.scores import ScoreTable
from fuse.results import Results, evaluate
from fuse.scores import ScoredCache
from fuse.summary import Made
from tests.helpers.cache import make_fingerprint

MADE = Made(version="0.0.0", date="2026-01-02T03:04:05+00:00")

Clips = Mapping[str, Sequence[Sequence[float]]]
"""Video -> softmax of each of its clips."""

HAND_WORKED: dict[Level, Clips] = {
    "low": {"a/one": [(0.2, 0.8), (0.4, 0.6), (0.6, 0.4)], "b/two": [(0.9, 0.1), (0.8, 0.2), (0.7, 0.3)]},
    "mid": {"a/one": [(0.8, 0.2), (0.7, 0.3), (0.6, 0.4)], "b/two": [(0.3, 0.7), (0.6, 0.4), (0.3, 0.7)]},
    "high": {"a/one": [(0.6, 0.4), (0.7, 0.3), (0.5, 0.5)], "b/two": [(0.5, 0.5), (0.3, 0.7), (0.4, 0.6)]},
}
"""Two videos, three clips, three levels. Means of class 0: low 0.4 and 0.8, mid 0.7 and 0.4, high 0.6 and 0.4; so
equation 10 gives 0.7 * 0.6 + 0.2 * 0.7 + 0.1 * 0.4 = 0.60 for the first and 0.7 * 0.4 + 0.2 * 0.4 + 0.1 * 0.8 = 0.44
for the second: classes 0 and 1, both right. The plain mean gives 1.7 / 3 (0, right) and 1.6 / 3 (0, wrong)."""

LABELS = {"a/one": 0, "b/two": 1}


def make_table(level: Level, clips: Clips, labels: Mapping[str, int], /, **changes: Any) -> ScoreTable:
    """Scores of one level; `changes` replaces fields of the run, or `classes`."""
    videos = [video for video, rows in clips.items() for _ in rows]
    classes = changes.pop("classes", ("left", "right"))
    starts = np.array([8 * index for rows in clips.values() for index in range(len(rows))])
    run = {
        "dataset": "tiny",
        "split": 1,
        "level": level,
        "pool": "mean",
        "seed": 0,
        "recipe": "paper",
        "variant": "",
        "weights": "random:0",
        "clips": {"length": 30, "stride": 8},
        "fingerprint": make_fingerprint().to_json(),
        "cache_digest": "c0ffee",
    }
    return ScoreTable(
        video_ids=np.array(videos),
        spans=np.stack([starts, starts + 30], axis=1),
        labels=np.array([labels[video] for video in videos]),
        softmax=np.array([row for rows in clips.values() for row in rows], dtype=np.float32),
        classes=np.array(classes),
        run={**run, **changes},
    )


def hand_worked_tables() -> dict[Level, ScoreTable]:
    """The three levels of HAND_WORKED."""
    return {level: make_table(level, HAND_WORKED[level], LABELS) for level in LEVELS}


def make_scored_cache(
    labels: Mapping[str, int],
    *,
    classes: Sequence[str] = ("left", "right"),
    name: str = "tiny",
    failed: Mapping[str, str] | None = None,
    suspect: Mapping[str, str] | None = None,
    subset: Subset | None = None,
    learned: Sequence[int] | None = None,
    **identity: object,
) -> ScoredCache:
    """A finished cache whose test videos are `labels`, with `learned` training videos of each class, else one.

    Those in `failed` have no features.
    """
    fingerprint, failed = make_fingerprint(**identity), dict(failed or {})
    rows: list[tuple[str, int, dict[int, Half]]] = [(f"{id}.avi", label, {1: "test"}) for id, label in labels.items()]
    for label, count in enumerate(learned or [1] * len(classes)):
        names = [f"learned/{label}{f'-{number}' if number else ''}.avi" for number in range(count)]
        rows += [(name, label, {1: "train"}) for name in names]
    dataset = Dataset.of_whole_videos(name, "folder", classes, rows)
    return ScoredCache(
        dataset=replace(dataset, subset=subset),
        identity=fingerprint.identity,
        environment=fingerprint.environment,
        video_ids=tuple(video.id for video in dataset.videos if video.id not in failed),
        suspect=dict(suspect or {}),
        failed=failed,
    )


def hand_worked_results() -> Results:
    """HAND_WORKED, evaluated."""
    return evaluate(hand_worked_tables(), make_scored_cache(LABELS), 1)


def made_up_results(
    classes: Sequence[str], videos: int, *, name: str = "tiny", id_of: Any = None, **cache: Any
) -> Results:
    """Scores drawn at random, right more often the deeper the level; `id_of(index, class)` names the videos."""
    generator = np.random.default_rng(0)
    names = [classes[index % len(classes)] for index in range(videos)]
    ids = [id_of(index, name) if id_of else f"c{index % len(classes)}/v{index}" for index, name in enumerate(names)]
    labels = {video: index % len(classes) for index, video in enumerate(ids)}
    scored_cache = make_scored_cache(labels, classes=classes, name=name, **cache)
    scored = {video: labels[video] for video in ids if video not in scored_cache.failed}
    tables: dict[Level, ScoreTable] = {}
    for level, strength in zip(LEVELS, (1.0, 1.5, 2.5), strict=True):
        logits = generator.normal(size=(len(scored), 2, len(classes)))
        logits[np.arange(len(scored)), :, list(scored.values())] += strength
        softmax = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
        fingerprint = {"identity": dict(scored_cache.identity), "environment": dict(scored_cache.environment)}
        clips = dict(zip(scored, softmax.tolist(), strict=True))
        tables[level] = make_table(level, clips, labels, classes=classes, dataset=name, fingerprint=fingerprint)
    return evaluate(tables, scored_cache, 1)


def results_of_a_subset() -> Results:
    """Everything that a report has to say at its top, and names that could be taken for markup."""
    classes = ("Archery", "=cmd()", "<b>|`x`", "Yo Yo")
    subset = Subset(published_videos=13320, published_classes=101, listed_videos=42, missing=("a/b", "c/d"))
    return made_up_results(
        classes, 40, name="ucf101", subset=subset, failed={"c3/v3": "truncated <file>"}, suspect={"c1/v1": "48 of 50"}
    )
