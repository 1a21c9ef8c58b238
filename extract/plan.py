"""What an extraction has to do: its dataset against the cache's, and the cache it adds to."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from cache.common.commands import source_of
from cache.common.console import say
from cache.common.errors import CacheError, DatasetError
from cache.common.text import some, visible
from cache.common.workspace import Workspace
from cache.dataset import ADDRESS, Dataset, Sample
from cache.fingerprint import Fingerprint
from cache.remote.client import Location
from cache.store import FeatureCache
from extract.datasets import load_dataset
from extract.datasets.changes import Change, find_changes
from extract.datasets.remote import address_of, ask_servers
from extract.decode import is_complete
from extract.forecast import check_disk, forecast
from extract.meter import Forecast
from extract.network.weights import Weights, is_untrained
from extract.settings import ExtractSettings, OneTimeOptions, RequestedSettings

LISTED_CLASSES = 20
"""Classes shown with their numbers of videos before an extraction."""

ROUNDING_SECONDS = 0.05
"""By how much a span may end after its video before that is mentioned: people round."""

LISTED = 5
"""Names shown of new, vanished and changed videos."""


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """One extraction that is ready for an engine."""

    workspace: Workspace
    dataset: Dataset
    """As found now."""
    root: Path
    """Folder that the paths of the videos start from."""
    settings: RequestedSettings
    options: OneTimeOptions

    @property
    def cache_path(self) -> Path:
        """Folder of the cache."""
        return self.workspace.cache(self.dataset.name)

    @property
    def video_paths(self) -> Mapping[str, Path]:
        """The file of each video, or the address it is fetched from (see `extract.datasets.remote`)."""
        return paths_of(self.dataset, self.root)


def paths_of(dataset: Dataset, root: Path) -> dict[str, Path]:
    """The file of each video below `root`, or the address it is fetched from (see `extract.datasets.remote`)."""
    return {
        video.id: Path(video.path) if ADDRESS.fullmatch(video.path) else root / video.path for video in dataset.videos
    }


def find_dataset(
    workspace: Workspace,
    name: str,
    settings: RequestedSettings,
    *,
    allow_remote: bool,
    recorded: Dataset | None = None,
) -> tuple[Dataset, Path]:
    """The dataset as it is now, and the folder that its paths start from; DatasetError if it is not usable.

    Splits that are drawn here keep the halves of the `recorded` dataset. Says which classes are in one half only.
    `allow_remote` is never remembered: a cache that somebody else made must not open connections by itself.
    """
    data = Path(settings.data) if settings.data else None
    found, root = load_dataset(
        name,
        data,
        subset=settings.subset,
        work=workspace.root,
        remote=allow_remote,
        recorded=recorded,
        say=say,
    )
    check_classes(found, root)
    return found, root


def check_classes(found: Dataset, root: Path) -> None:
    """Raises DatasetError if there is nothing to tell apart; says which classes are in one half only."""
    if len(counts := found.class_counts()) == 1:
        raise DatasetError(
            f"{root}: all {counts.total():,} labelled videos are of one class, {visible(next(iter(counts)))!r}, so "
            "there is nothing to tell apart: expected are <class>/<video> of two classes or more, or a CSV file with "
            "their labels"
        )
    if alike := _alike(found.classes):
        say(f"classes whose names look alike, so that they may be meant as one: {some(alike)}")
    for split in found.split_numbers:
        for note in found.one_sided_notes(split):
            say(f"split {split}: {note}")


def _alike(classes: Sequence[str]) -> list[str]:
    """Names that differ only in case, spaces, or how accents are encoded (macOS and Linux write them differently)."""
    same: dict[str, list[str]] = {}
    for name in classes:
        same.setdefault("".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
    return [" and ".join(map(ascii, names)) for names in same.values() if len(names) > 1]


def update_dataset(cache: FeatureCache, found: Dataset) -> None:
    """Make the dataset as found now the cache's; says which videos are new, gone, or have another label or half.

    DatasetError if the two have no video in common.
    """
    cached = cache.dataset
    before, now = ({video.id for video in each.videos} for each in (cached, found))
    if before and before.isdisjoint(now):
        raise DatasetError(
            f"none of the {len(before)} videos in the cache of {cached.name!r} is among the {len(now)} found now; "
            f"check {source_of('--data')}, or give another name with DATASET= (--dataset)"
        )
    if found != cached:
        cache.replace_dataset(found)
    samples_before, samples_now = ({sample.id: sample for sample in each.samples} for each in (cached, found))
    both = [(samples_before[each], samples_now[each]) for each in sorted(samples_before.keys() & samples_now)]
    changes = {
        "new since the cache was made: {} of the videos, {}": sorted(now - before),
        "{} videos are no longer in the data set (their features stay in the shards): {}": sorted(before - now),
        "{} samples of videos that are here already are new: {}": _of(samples_now, samples_before, before),
        "{} samples are no longer listed: {}": _of(samples_before, samples_now, now),
        "{} videos have another label than before: {}": [
            sample.id for old, sample in both if cached.class_of(old) != found.class_of(sample)
        ],
        "{} videos are in another half of a split than before: {}": [
            sample.id for old, sample in both if old.splits != sample.splits
        ],
    }
    for text, ids in changes.items():
        if ids:
            say(text.format(f"{len(ids):,}", some(ids, LISTED)))


def compare_files(cache: FeatureCache, paths: Mapping[str, Path]) -> None:
    """Make videos pending whose files are not those that were extracted, and done whose doubt is none now; says so."""
    extracted = cache.ledger.files()
    remote = {each: address for each in extracted if each in paths and (address := address_of(paths[each]))}
    states, problems = ask_servers(remote) if remote else ({}, {})
    found = find_changes(extracted, paths, states)
    if found["changed"]:
        cache.requeue(videos=list(found["changed"]))
    if now := found["touched"] | found["unknown"]:
        cache.put_files(now)
    texts: dict[Change, str] = {
        "changed": "{} videos are extracted again, because their files have changed: {}",
        "touched": "{} files have another time and the same bytes, so nothing is to be done: {}",
        "unknown": "{} files are remembered as they are now, since the cache did not know them yet: {}",
    }
    for change, text in texts.items():
        if ids := sorted(found[change]):
            say(text.format(f"{len(ids):,}", some(ids, LISTED)))
    doubted = [outcome.video_id for outcome in cache.ledger.outcomes("suspect") if outcome.is_header_doubt]
    if count := cache.accept([each for each in doubted if each in paths and is_complete(paths[each])]):
        say(
            f"{count:,} suspect videos are done now: only the counts in their headers differ, and the files "
            "are complete (--again ID extracts one anew)"
        )
    if problems:
        say(
            f"{len(problems):,} remote videos could not be compared with what their servers have now "
            f"({visible(next(iter(problems.values())))}): {some(sorted(problems), LISTED)}"
        )
    if vague := [each for each, state in states.items() if not (state.hash or state.modified_ns)]:
        say(
            f"{len(vague):,} remote videos are compared by size alone, since their servers send neither ETag nor "
            f"Last-Modified: {some(sorted(vague), LISTED)} (--again ID extracts one anew)"
        )


def extract_again(cache: FeatureCache, found: Dataset, ids: Sequence[str]) -> None:
    """Make the videos that the user names, also by path or by a span, pending again. DatasetError for unknown ones."""
    known = {sample.id: sample.video for sample in found.samples} | {video.path: video.id for video in found.videos}
    known |= {video.id: video.id for video in found.videos}
    if unknown := [each for each in ids if each not in known]:
        near = get_close_matches(unknown[0], known)
        raise DatasetError(
            f"--again: there is no video {visible(unknown[0])!r} in {found.name!r}"
            + (f"; the nearest are {some(near)}" if near else "; an id is a path below the data folder, without suffix")
        )
    videos = list(dict.fromkeys(known[each] for each in ids))
    cache.requeue(videos=videos)
    say(f"{len(videos)} videos are extracted again, as asked for: {some(videos, LISTED)}")


def _of(samples: Mapping[str, Sample], others: Mapping[str, Sample], videos: set[str]) -> list[str]:
    """Ids of the samples that the others lack although their video is among `videos`."""
    return sorted(each for each in samples.keys() - others if samples[each].video in videos)


def check_spans(cache: FeatureCache) -> tuple[list[str], bool]:
    """A line for each span that ends after the cached frames of its video; and whether one of them has no frame."""
    lines, empty, have = [], False, set(cache.video_ids)
    for sample in cache.dataset.samples:
        if sample.span is None or sample.video not in have:
            continue
        pts_F, frames = cache.pts_seconds(sample.video), cache.frames_of(sample)
        end = float(pts_F[-1]) + (float(pts_F[-1]) / (len(pts_F) - 1) if len(pts_F) > 1 else 0.0)
        if frames and sample.span[1] <= end + ROUNDING_SECONDS:
            continue
        empty |= not frames
        what = "has no frame of its video" if not frames else "ends after its video, and counts up to there"
        line = f"line {sample.line}: " if sample.line else ""
        lines.append(f"  {line}span {visible(sample.id)} {what}: its frames in the cache end at {end:.2f} s")
    return lines, empty


def open_cache(extraction: Extraction, settings: ExtractSettings, made_with: Fingerprint) -> FeatureCache:
    """The cache to add to, made if there is none; says if others add to it as well.

    FingerprintError if the cache was made with something else than `made_with`.
    """
    path, options = extraction.cache_path, extraction.options
    # A published cache is attached, or refused, before anything is extracted.
    store = options.location if isinstance(options.location, Location) else None
    if not path.exists():
        try:
            FeatureCache.create(
                path,
                dataset=extraction.dataset,
                fingerprint=made_with,
                settings=extraction.settings.record(settings),
                backend=options.backend or ("zarr" if store else "h5"),
                location=store,
            ).close()
        except CacheError:
            # If another extractor made it in the meantime, that one will do.
            if not (path / "cache.json").exists():
                raise
    cache = FeatureCache.open_for_extraction(path, made_with, options.allow_drift)
    if cache.ledger.leases():
        say(
            f"another extractor is at work on {path} (`mrrn cache leases {path}` says which); the videos are "
            "shared, none is extracted twice"
        )
    return cache


def announce(
    extraction: Extraction, cache: FeatureCache, settings: ExtractSettings, weights: Weights, where: str
) -> Forecast | None:
    """Say what is about to be done, on the devices `where`; CacheError if the disk is too small for it."""
    dataset, pending = extraction.dataset, cache.ledger.counts()["pending"]
    which = "untrained" if is_untrained(weights.text) else f"sha256 {weights.sha256[:12]}"
    subset = " (a subset)" if dataset.subset else ""
    limits = [f"at most {settings.max_frames} frames"] if settings.max_frames else []
    limits += [f"at most {settings.fps:g} frames a second"] if settings.fps else []
    expected = forecast(cache, extraction.video_paths, settings)
    frames = f", about {expected.frames:,.0f} frames" if expected else ""
    done = len(dataset.videos) - pending
    before = f"; going on, {done:,} are done" if done else ""
    say(f"{dataset.name}: {pending:,} of {len(dataset.videos):,} videos{subset} to extract{frames}{before}")
    say(f"  from {extraction.root}")
    listed = [f"{name} {count:,}" for name, count in sorted(dataset.class_counts().items())]
    say(f"  {len(listed)} classes: {some(listed, LISTED_CLASSES)}")
    say(f"  {settings.backbone} with {weights.text} ({which}), levels {', '.join(settings.levels)}")
    say(f"  views {', '.join([*settings.views, *limits])}")
    say(
        f"  on {where} in {settings.precision}, batches of {settings.batch_frames}; "
        f"{settings.jobs} decoding ({settings.decoder})"
    )
    say("; ".join(filter(None, [f"  into {cache.place}", check_disk(cache, settings, expected)])))
    return expected
