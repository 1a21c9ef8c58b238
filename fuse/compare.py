"""Trained runs side by side: which test videos each gets right, where they differ, and whether chance may explain it.

Shapes: N test videos, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cache.aggregate import Interval, align, correct, fraction, fuse_levels, predicted, wilson
from cache.common.errors import ScoreError
from cache.common.text import some
from cache.common.workspace import Workspace
from cache.comparison import Comparison, McNemar, compare, mcnemar
from cache.dataset import Dataset
from cache.fingerprint import LEVELS
from cache.scores import read_scores
from fuse.scores import by_sample, check_same, differences, half_differences, identity_of, read_scored_cache
from train.config import SCORES_FILE

_SETTINGS: Final = ("recipe", "pool", "seed", "clips", "fingerprint")


@dataclass(frozen=True, kw_only=True)
class ScoredRun:
    """One run: a single level's, or the three levels' fused by equation 10."""

    name: str
    """As it was asked for."""
    probabilities: NDArray[np.float64]
    """`[N, K]`; NaN rows for videos without scores."""
    correct: NDArray[np.bool_]
    """`[N]`"""
    settings: Mapping[str, Any]
    """What its scores say of how it came about."""

    @property
    def accuracy(self) -> float:
        """A fraction."""
        return fraction(self.correct)

    @property
    def interval(self) -> Interval:
        """95 % interval of the accuracy, Wilson's."""
        return wilson(int(self.correct.sum()), len(self.correct))

    @property
    def unscored(self) -> int:
        """Test videos without scores, which count as wrong."""
        return int(np.isnan(self.probabilities).any(axis=1).sum())


@dataclass(frozen=True, kw_only=True)
class ClassDifference:
    """The two runs of a pair on one class."""

    name: str
    videos: int
    first: int
    """Videos that the first run gets right."""
    second: int
    test: McNemar
    """Of the second run against the first."""


@dataclass(frozen=True, kw_only=True)
class SideBySide:
    """Runs on the test half of one split, the first of which the others are compared with."""

    dataset: Dataset
    split: int
    video_ids: tuple[str, ...]
    """`[N]`"""
    labels: NDArray[np.int64]
    """`[N]`"""
    runs: tuple[ScoredRun, ...]

    def settings_that_differ(self) -> list[str]:
        """A line for each."""
        return [
            line
            for name in _SETTINGS
            for line in differences(name, {run.name: run.settings.get(name) for run in self.runs})
        ]

    def against_first(self, run: ScoredRun) -> Comparison:
        """A run against the first one."""
        return compare(run.correct, self.runs[0].correct)

    def by_class(self, run: ScoredRun) -> list[ClassDifference]:
        """A run against the first one on each class with test videos, those first where they differ the most."""
        found = []
        for label, name in enumerate(self.dataset.classes):
            first_n, second_n = (each.correct[self.labels == label] for each in (self.runs[0], run))
            if len(first_n):
                found.append(
                    ClassDifference(
                        name=name,
                        videos=len(first_n),
                        first=int(first_n.sum()),
                        second=int(second_n.sum()),
                        test=mcnemar(second_n, first_n),
                    )
                )
        return sorted(found, key=lambda each: (-abs(each.second - each.first) / each.videos, -each.videos))

    def only_right(self, run: ScoredRun, other: ScoredRun) -> list[tuple[int, int]]:
        """Videos that `run` gets right and `other` does not, with what `other` says; the most confident error first."""
        places = np.flatnonzero(run.correct & ~other.correct)
        confidence, said = np.nan_to_num(other.probabilities.max(axis=1)), predicted(other.probabilities)
        return [(int(each), int(said[each])) for each in places[np.argsort(-confidence[places], kind="stable")]]


def side_by_side(names: Sequence[str], workspace: Workspace, dataset: str, split: int) -> SideBySide:
    """The runs called `names`, on a split of an extracted dataset.

    A name is that of the runs' folders without their level, `mean-seed0-paper`, for the three levels fused; a folder's
    whole name, `high-mean-seed0-paper`, for one level alone; or the path of either, if it is in another place. Raises
    `ScoreError` unless all are of the same test videos, labels and classes.
    """
    cache, folder = read_scored_cache(workspace, dataset), workspace.runs(dataset, split)
    if len(names) < 2 or len(set(names)) < len(names):
        raise ScoreError(
            f"give two or more different runs; the others are compared with the first; {_there_are(folder)}"
        )
    expected = cache.test_labels(split)
    return SideBySide(
        dataset=cache.dataset,
        split=split,
        video_ids=tuple(expected),
        labels=np.fromiter(expected.values(), dtype=np.int64),
        runs=tuple(_read(name, folder, cache.dataset, expected) for name in names),
    )


def _read(name: str, folder: Path, dataset: Dataset, expected: Mapping[str, int]) -> ScoredRun:
    path, ids = folder / name, tuple(expected)
    if (path / SCORES_FILE).exists():
        table = read_scores(path / SCORES_FILE)
        probabilities = align(*table.videos()[:2], ids)
    else:
        paths = {level: path.parent / f"{level}-{path.name}" / SCORES_FILE for level in LEVELS}
        missing = [level for level, each in paths.items() if not each.exists()]
        if missing:
            raise ScoreError(
                f"no run is called {name!r} in {path.parent}, alone or with the levels {', '.join(LEVELS)} before it "
                f"(missing: {', '.join(missing)}); {_there_are(folder)}"
            )
        tables = {level: read_scores(each) for level, each in paths.items()}
        check_same(tables)
        table = tables["high"]
        probabilities = fuse_levels(by_sample(tables, ids))
    if problems := half_differences(table, dataset, expected):
        raise ScoreError(f"the scores of {name} are not of the same test videos:\n  " + "\n  ".join(problems))
    return ScoredRun(
        name=name,
        probabilities=probabilities,
        correct=correct(probabilities, np.fromiter(expected.values(), dtype=np.int64)),
        settings={**table.run, "fingerprint": identity_of(table)},
    )


def _there_are(folder: Path) -> str:
    """The names that may be given."""
    runs = sorted(path.parent.name for path in folder.glob(f"*/{SCORES_FILE}"))
    fused = [name.partition("-")[2] for name in runs if name.startswith("high-")]
    fused = [name for name in fused if all(f"{level}-{name}" in runs for level in LEVELS)]
    return f"in {folder} there are {some([*fused, *runs], 30)}" if runs else f"in {folder} there are none"
