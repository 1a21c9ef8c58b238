"""What may be wrong with a dataset, told by its cached features: findings as data. `fuse.report.findings` shows them.

Shapes: N samples with features, F frames, C channels of all levels together, K classes.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from cache.common.errors import CacheError, ScoreError, TrainingError
from cache.common.progress import progress
from cache.dataset import Dataset, Half, Sample
from cache.store import FeatureCache
from fuse.choice import RunChoice
from fuse.duplicates import Pair, Space, joined, near_pairs
from fuse.labels import AlikeClasses, alike_classes, doubts, held_out
from fuse.portions import Portion
from fuse.results import Results, evaluate
from fuse.scores import read_levels, read_scored_cache

Kind = Literal["leak", "recording", "conflict", "label", "copy", "black", "frozen", "short"]

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
"""The gravest first."""

FROZEN: Final = 0.03
"""Motion below which a video is one picture all along. Real videos had 0.12 and more, encoded still ones 0.005."""

FEW_FRAMES: Final = 10
"""Frames below which a video is short: a clip of 30 frames would show each of them more than three times."""

LIKELY: Final = 0.5
"""Probability above which a label is likely wrong."""

DARK: Final = 32
"""Brightness, of 255, that 99 of 100 values of a black video's frames are below."""

COMPARED_FRAMES: Final = 96
"""Frames of a video that are compared with those of another one, evenly spread."""

CANDIDATES: Final = 64
"""Copies of one video among which the one most like another is looked for."""

_CHUNK: Final = 4096
"""Frames that are averaged at a time; bounds the memory."""


@dataclass(frozen=True, kw_only=True)
class Suspicion:
    """Something that may be wrong with a sample."""

    kind: Kind
    sample: str
    other: str | None = None
    """The sample that it is a copy of, or of one recording with."""
    score: float
    """Of two samples their similarity, 1 for equal features; of a label the probability that it is wrong;
    of a frozen video its motion; of a short one its frames."""
    advice: str


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """All findings about a dataset, for one split."""

    dataset: Dataset
    split: int
    samples: int
    """Those that have features and were examined."""
    groups: int
    """Recordings that they are of, as names or the manifest tell."""
    judged: int
    """Those whose label could be judged."""
    findings: tuple[Suspicion, ...]
    """The gravest first."""
    alike: tuple[AlikeClasses, ...]

    def of_kind(self, kind: Kind) -> list[Suspicion]:
        """The findings of one kind."""
        return [each for each in self.findings if each.kind == kind]


@dataclass(frozen=True, kw_only=True)
class _Means:
    """What is read of the samples."""

    samples: tuple[Sample, ...]
    mean_NC: NDArray[np.float32]
    variance_NC: NDArray[np.float32]
    """Over time."""
    frames_N: NDArray[np.int64]

    def equal(self, numbers: Sequence[int]) -> Iterator[Pair]:
        """Pairs of those samples, of two videos, that have exactly the same features: each with the first such one."""
        first: dict[tuple[bytes, int], int] = {}
        for number in numbers:
            digest = hashlib.sha256(self.mean_NC[number].tobytes() + self.variance_NC[number].tobytes()).digest()
            earlier = first.setdefault((digest, int(self.frames_N[number])), number)
            if self.samples[earlier].video != self.samples[number].video:
                yield Pair(earlier, number, 1.0, copy=True)


def examine(cache: FeatureCache, split: int) -> Diagnosis:
    """Examine all samples that have features, in the center view."""
    dataset = cache.dataset
    seen, widths = _read(cache), [cache.widths[level] for level in cache.levels]
    still_N = Space.of(seen.mean_NC, seen.variance_NC, widths).motion(seen.variance_NC) < FROZEN
    # One frame cannot move: an image, or another program's single vector for a video.
    still_N &= seen.frames_N > 1
    moving = np.flatnonzero(~still_N)
    chosen = moving if 0 < len(moving) < len(still_N) else slice(None)
    space = Space.of(seen.mean_NC[chosen], seen.variance_NC[chosen], widths)
    group_N = _numbers([each.group_name for each in seen.samples])
    pairs = _pairs(cache, seen, space, moving, group_N)
    label_N = np.array([-1 if each.label is None else each.label for each in seen.samples], dtype=np.int64)
    label_N[still_N] = -1
    first = np.unique(group_N, return_index=True)[1]
    related = [(pair.first, pair.second) for pair in pairs] + list(enumerate(first[group_N].tolist()))
    levels = dict(zip(cache.levels, np.split(seen.mean_NC, np.cumsum(widths)[:-1], axis=1), strict=True))
    # What is known of other clips of the same recording tells best whether one label is wrong; classes are compared
    # without it.
    alone = np.random.default_rng(0).permutation(len(label_N))
    recording_N = joined(len(label_N), related)
    by_sample_NK, by_group_NK = (
        held_out(levels, label_N, numbers, len(dataset.classes)) for numbers in (alone, recording_N)
    )
    findings = [
        *_shared(seen.samples, space.directions(seen.mean_NC), pairs, split, dataset),
        *_mislabelled(seen.samples, by_sample_NK, label_N, dataset),
        *_poor(seen, space.motion(seen.variance_NC), still_N, least=0 if cache.imported else FEW_FRAMES),
    ]
    return Diagnosis(
        dataset=dataset,
        split=split,
        samples=len(seen.samples),
        groups=len(np.unique(group_N)),
        judged=int((~np.isnan(by_sample_NK).any(axis=1)).sum()),
        findings=tuple(sorted(findings, key=lambda each: (KINDS.index(each.kind), -each.score, each.sample))),
        alike=tuple(alike_classes(by_group_NK, label_N, recording_N)),
    )


def _read(cache: FeatureCache) -> _Means:
    """Means and variances of the samples' frames."""
    samples = tuple(each for each in cache.dataset.samples if cache.frames_of(each))
    mean_NC, variance_NC = np.empty((2, len(samples), sum(cache.widths.values())), np.float32)
    with progress("reading features", len(samples), cache.dataset.noun) as bar:
        for number, sample in enumerate(samples):
            inside = cache.frames_of(sample)
            moments = [_moments(cache.features(sample.video, lv, 0, inside.start, inside.stop)) for lv in cache.levels]
            mean_NC[number], variance_NC[number] = map(np.concatenate, zip(*moments, strict=True))
            bar.update(number + 1)
    frames_N = np.array([len(cache.frames_of(each)) for each in samples], dtype=np.int64)
    return _Means(samples=samples, mean_NC=mean_NC, variance_NC=variance_NC, frames_N=frames_N)


def _moments(features_FC: NDArray[np.float16]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and variance of each channel `[C]`: of differences from the first frame, which lose no digits."""
    first_C = features_FC[0].astype(np.float32)
    sum_C = squares_C = np.zeros(len(first_C))
    for start in range(0, len(features_FC), _CHUNK):
        part_FC = features_FC[start : start + _CHUNK].astype(np.float32)
        part_FC -= first_C
        sum_C, squares_C = sum_C + part_FC.sum(axis=0), squares_C + np.einsum("fc,fc->c", part_FC, part_FC)
    mean_C = sum_C / len(features_FC)
    variance_C = np.maximum(squares_C / len(features_FC) - mean_C**2, 0)
    return (first_C + mean_C).astype(np.float32), variance_C.astype(np.float32)


def _pairs(
    cache: FeatureCache, seen: _Means, space: Space, numbers: NDArray[np.int64], group_N: NDArray[np.int64]
) -> list[Pair]:
    """Copies, and parts of one recording under different groups, among these samples."""
    equal = [*seen.equal(numbers.tolist())]
    unique = np.setdiff1d(numbers, [pair.second for pair in equal])

    @lru_cache(maxsize=64)
    def frames(place: int) -> NDArray[np.float32]:
        sample = seen.samples[unique[place]]
        inside = cache.frames_of(sample)
        chosen = np.unique(np.linspace(0, len(inside) - 1, COMPARED_FRAMES).round().astype(np.int64))
        levels = (cache.features(sample.video, level, 0, inside.start, inside.stop)[chosen] for level in cache.levels)
        return np.concatenate([each.astype(np.float32) for each in levels], axis=1)

    near = near_pairs(
        space.directions(seen.mean_NC[unique]),
        group_N[unique],
        lambda one, other: space.same_moments(frames(one), frames(other)),
    )
    return equal + [replace(pair, first=int(unique[pair.first]), second=int(unique[pair.second])) for pair in near]


def _numbers(names: Sequence[str]) -> NDArray[np.int64]:
    """Equal numbers for equal names."""
    return np.unique(names, return_inverse=True)[1]


def _shared(
    samples: Sequence[Sample], unit_NC: NDArray[np.float32], pairs: Sequence[Pair], split: int, dataset: Dataset
) -> Iterator[Suspicion]:
    """What copies, and recordings in both halves, mean for the split and for the labels."""
    halves: list[Half] = [each.splits.get(split, "none") for each in samples]
    set_N = joined(len(samples), [(pair.first, pair.second) for pair in pairs if pair.copy])
    members = defaultdict(list)
    for number, root in enumerate(set_N.tolist()):
        members[root].append(number)

    def finding(kind: Kind, number: int, others: Sequence[int], advice: str) -> Suspicion:
        """About `number` and the one of `others` most like it; `{}` in `advice` is that one's class."""
        few = others[:CANDIDATES]
        like = unit_NC[few] @ unit_NC[number]
        other = samples[few[int(like.argmax())]]
        said = advice.replace("{}", str(dataset.class_of(other)))
        return Suspicion(
            kind=kind, sample=samples[number].id, other=other.id, score=min(float(like.max()), 1.0), advice=said
        )

    leaked = set()
    for copies in members.values():
        of_half: dict[Half, list[int]] = defaultdict(list)
        of_label: dict[int, list[int]] = defaultdict(list)
        for number in copies:
            of_half[halves[number]].append(number)
            if (label := samples[number].label) is not None:
                of_label[label].append(number)
        by_label = sorted(of_label.values(), key=len, reverse=True)
        for number in copies:
            if halves[number] == "test" and of_half["train"]:
                leaked.add(number)
                yield finding("leak", number, of_half["train"], "take one of the two out")
            elif number != of_half[halves[number]][0]:
                yield finding("copy", number, of_half[halves[number]][:1], "take one of the two out: it counts twice")
            if len(by_label) < 2 or samples[number].label is None:
                continue
            is_usual = samples[number].label == samples[by_label[0][0]].label
            # Where no label has the majority, each of them may be wrong.
            if not (is_usual and 2 * len(by_label[0]) > len(copies)):
                here = dataset.class_of(samples[number])
                yield finding("conflict", number, by_label[is_usual], f"{here} here, {{}} there: decide which is right")
    related = defaultdict(set)
    for pair in pairs:
        related[pair.first].add(pair.second)
        related[pair.second].add(pair.first)
    of_group = defaultdict(list)
    for number, sample in enumerate(samples):
        if halves[number] == "train":
            of_group[sample.group_name].append(number)
    for number, sample in enumerate(samples):
        near = {
            *of_group[sample.group_name][:CANDIDATES],
            *(each for each in related[number] if halves[each] == "train"),
        }
        if halves[number] == "test" and number not in leaked and near:
            yield finding("recording", number, sorted(near), "give both one group, so that they share a half")


def _mislabelled(
    samples: Sequence[Sample], probability_NK: NDArray[np.float64], label_N: NDArray[np.int64], dataset: Dataset
) -> Iterator[Suspicion]:
    doubt_N = doubts(probability_NK, label_N)
    for number in np.flatnonzero(doubt_N > LIKELY).tolist():
        here = label_N[number]
        there = int(np.where(np.arange(len(dataset.classes)) == here, -1, probability_NK[number]).argmax())
        advice = f"{dataset.classes[here]} here, looks like {dataset.classes[there]}: watch it"
        yield Suspicion(kind="label", sample=samples[number].id, score=float(doubt_N[number]), advice=advice)


def _poor(
    seen: _Means, motion_N: NDArray[np.float32], still_N: NDArray[np.bool_], *, least: int
) -> Iterator[Suspicion]:
    """Videos that show nothing, or have fewer than `least` frames: an imported feature may be of many pictures."""
    for sample, frames, motion, still in zip(seen.samples, seen.frames_N, motion_N, still_N, strict=True):
        if still:
            advice = "one picture all along: watch it"
            yield Suspicion(kind="frozen", sample=sample.id, score=float(motion), advice=advice)
        if frames < least:
            yield Suspicion(kind="short", sample=sample.id, score=int(frames), advice="check the file")


def with_black(diagnosis: Diagnosis, frames: Mapping[str, NDArray[np.uint8]]) -> Diagnosis:
    """The same, its frozen videos called black if their `frames` `[F, H, W, 3]` are: features do not tell."""
    findings = [
        replace(each, kind="black", advice="take it out")
        if each.kind == "frozen" and each.sample in frames and np.percentile(frames[each.sample], 99) < DARK
        else each
        for each in diagnosis.findings
    ]
    return replace(diagnosis, findings=tuple(sorted(findings, key=lambda each: KINDS.index(each.kind))))


SUSPECTS: Final[Mapping[str, tuple[Kind, ...]]] = {
    "copies of training {}": ("leak",),
    "{} of one recording with training {}": ("recording",),
    "{} with a label in doubt": ("conflict", "label"),
    "black, frozen or short {}": ("black", "frozen", "short"),
}
"""Test samples that are counted apart: what they are called, and their findings."""

OTHERS: Final = "others"
"""The test samples that are none of these."""


def effect(choice: RunChoice, diagnosis: Diagnosis) -> tuple[list[Portion], str]:
    """The `portions` of the chosen runs' results, empty without trained heads; and what has to be said of them."""
    try:
        cache = read_scored_cache(choice.workspace, choice.dataset)
        parts = portions(evaluate(read_levels(choice), cache, choice.split), diagnosis)
    except (CacheError, ScoreError, TrainingError) as error:
        why = str(error).splitlines()[0].partition(";")[0]
        return [], f"With trained heads this would say what the findings do to their accuracy. There are none: {why}."
    return parts, "" if parts[-1].name == OTHERS else f"There is a finding about every test {cache.dataset.noun[:-1]}."


def portions(results: Results, diagnosis: Diagnosis) -> list[Portion]:
    """How many test samples the runs get right: of all, of each of SUSPECTS, and of those without any of these."""
    noun, right_N = diagnosis.dataset.noun, results.correct["fused"]
    right = dict(zip(results.video_ids, right_N.tolist(), strict=True))

    def portion(name: str, ids: Sequence[str]) -> Portion:
        return Portion(name, len(ids), sum(right[each] for each in ids))

    apart = {
        name.replace("{}", noun): {each.sample for kind in kinds for each in diagnosis.of_kind(kind)}
        for name, kinds in SUSPECTS.items()
    }
    found = [portion(f"test {noun}", [*right])]
    found += [portion(name, [each for each in right if each in ids]) for name, ids in apart.items()]
    found.append(portion(OTHERS, [each for each in right if not any(each in ids for ids in apart.values())]))
    return [each for each in found if each.videos]
