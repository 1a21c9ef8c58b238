"""Compares a dataset's lists with the files on disk and with the counts that its authors publish."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cache.common.errors import DatasetError
from cache.common.text import some
from cache.dataset import Dataset, Subset, video_id


@dataclass(frozen=True, kw_only=True)
class PublishedCounts:
    """The counts that a dataset's authors give."""

    title: str
    """The dataset's name as its authors write it."""
    videos: int
    classes: int
    halves: Mapping[int, tuple[int, int]]
    """For each split: training videos, test videos."""


def match_files(
    listed: Dataset, found: Collection[str], root: Path, published: PublishedCounts | None, *, subset: bool
) -> Dataset:
    """The dataset of the listed videos whose files were found below `root`.

    Raises DatasetError if a listed video has no file, a file is not listed, or a count is not as published. With
    `subset` that is allowed, and the dataset records what is missing.
    """
    files = set(found)
    missing = tuple(video.id for video in listed.videos if video.path not in files)
    extra = tuple(sorted(files - {video.path for video in listed.videos}))
    lacking = count_problems(listed, published) if published else []
    if missing:
        lacking.append(f"{len(missing):,} of {len(listed.videos):,} listed videos are missing: {some(missing)}")
    unlisted = [f"{len(extra):,} video files are in no list: {some(extra)}"] if extra else []
    if (lacking or unlisted) and not subset:
        problems = "\n  ".join(lacking + unlisted)
        raise DatasetError(
            f"{root} is not the complete dataset:\n  {problems}\nCorrect that; or, to work with the videos that are "
            "there, ask for it: SUBSET=1 (--subset), and every report will say so"
        )
    videos = tuple(video for video in listed.videos if video.path in files)
    if not videos:
        raise DatasetError(
            f"none of the {len(listed.videos):,} listed videos is below {root}: listed are {some(missing)}, "
            f"found {some(extra) or 'nothing'}; check where DATA= (--data) points"
        )
    lacks = Subset(
        published_videos=published.videos if published else None,
        published_classes=published.classes if published else None,
        listed_videos=len(listed.videos),
        missing=missing,
    )
    kept = {video.id for video in videos}
    return replace(
        listed,
        videos=videos,
        samples=tuple(sample for sample in listed.samples if sample.video in kept),
        extra=tuple(map(video_id, extra)),
        subset=lacks if lacking else None,
    )


def count_problems(listed: Dataset, published: PublishedCounts) -> list[str]:
    """Differences between the lists and the published counts, a phrase each; empty if there are none."""
    found: dict[str, tuple[int, int]] = {
        "classes": (len(listed.classes), published.classes),
        "listed videos": (len(listed.videos), published.videos),
    }
    for split, (train, test) in sorted(published.halves.items()):
        halves = Counter(sample.splits[split] for sample in listed.samples if split in sample.splits)
        if halves:
            found[f"training videos of split {split}"] = (halves["train"], train)
            found[f"test videos of split {split}"] = (halves["test"], test)
    return [
        f"{got:,} {what}, where {published.title} as published has {expected:,}"
        for what, (got, expected) in found.items()
        if got != expected
    ]
