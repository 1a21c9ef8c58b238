"""One extraction from the command line: prepare it, choose an engine, report what came of it."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path

from cache.common.commands import advised, source_of
from cache.common.console import FINISHED_WITH_FAILURES, choose_dataset, say, say_next, say_time
from cache.common.device import check_device
from cache.common.errors import CacheError, FingerprintError
from cache.common.interrupts import done_so_far
from cache.common.progress import duration
from cache.common.text import some, visible
from cache.common.workspace import Workspace
from cache.fingerprint import JSON, LEVELS
from cache.ledger import Status
from cache.remote.address import WebAddress
from cache.remote.attachment import RemoteCache
from cache.store import FeatureCache
from extract import plan
from extract.fingerprint import check_given, sources
from extract.network.weights import IMAGENET, check_weights
from extract.plan import Extraction
from extract.settings import OneTimeOptions, RequestedSettings, flag_of

LISTED = 20
"""Videos listed of each status, and spans; `mrrn cache info` has all videos."""


def run(workspace: Workspace, dataset: str | None, given: Mapping[str, JSON], options: OneTimeOptions) -> int:
    """Extract `dataset`, by default the one extracted last; returns the exit code.

    `given`: the settings that were asked for, by the names of `RequestedSettings`.
    """
    if dataset is None and isinstance(options.location, WebAddress):
        found = RemoteCache(options.location)
        dataset, options = found.contents[1].name, replace(options, location=found)
    name = choose_dataset(workspace, dataset)
    # Before torch is imported, so that what is missing is told at once. Ray's workers have other devices.
    if options.engine == "local":
        check_device(given.get("device", "auto"))
    check_weights(given.get("weights", IMAGENET))
    with _naming_sources(given):
        extraction = prepare(workspace, name, given, options)
    if extraction is not None:
        check_weights(extraction.settings.weights)
        if options.engine == "ray":
            from extract.cluster.driver import extract
        else:
            from extract.local import extract
        started = time.monotonic()
        with _naming_sources(given), done_so_far(lambda: _done(workspace.cache(name))):
            frames = extract(extraction)
        workspace.remember_dataset(name)
        seconds = time.monotonic() - started
        say_time(f"{frames:,} frames in {duration(seconds)} ({frames / seconds:,.0f} a second, the start included)")
    with FeatureCache.open(workspace.cache(name)) as cache:
        say(summary(cache))
        if extraction is not None:
            held = sum(row.num_bytes for row in cache.ledger.shards())
            say(f"{cache.path}: {held / 1e6:,.1f} MB on disk, {cache.ledger.num_frames():,} frames in all")
        lines, empty_spans = plan.check_spans(cache)
        more = [f"  and {len(lines) - LISTED} more spans"] if len(lines) > LISTED else []
        for line in [*lines[:LISTED], *more]:
            say(line)
        advise_training(workspace, name, cache)
        return FINISHED_WITH_FAILURES if empty_spans or cache.ledger.counts()["failed"] else 0


def advise_training(workspace: Workspace, name: str, cache: FeatureCache) -> None:
    """Say which command comes next."""
    one = {} if len(cache.levels) == len(LEVELS) else {"level": cache.levels[-1]}
    say_next(advised("train", workspace, dataset=name, **one), "extract")


@contextmanager
def _naming_sources(given: Mapping[str, JSON]) -> Iterator[None]:
    """A FingerprintError says where the settings come from that differ."""
    try:
        yield
    except FingerprintError as error:
        raise FingerprintError(f"{error}. {sources(given, error.fields)}".removesuffix(". "), error.fields) from None


def _done(path: Path) -> str:
    if not (path / "cache.json").exists():
        return "nothing was extracted yet"
    with FeatureCache.open(path) as cache:
        counts = cache.ledger.counts()
    total = sum(counts.values())
    return f"{total - counts['pending']:,} of {total:,} videos are done and kept"


def prepare(workspace: Workspace, name: str, given: Mapping[str, JSON], options: OneTimeOptions) -> Extraction | None:
    """Compare what was asked for with the cache and the videos on hand; None if there is nothing to do."""
    path = workspace.cache(name)
    cache = FeatureCache.find(path, options.location)
    if cache is None:
        settings = RequestedSettings.joined(name, given)
        dataset, root = plan.find_dataset(workspace, name, settings, allow_remote=options.allow_remote)
        return Extraction(workspace=workspace, dataset=dataset, root=root, settings=settings, options=options)
    with cache:
        if not cache.imported:
            settings = RequestedSettings.joined(name, given, cache.settings)
            check_given(settings, given, cache.fingerprint, allow_drift=options.allow_drift, where=f"the cache {path}")
        if why := _nothing_to_extract(cache):
            _check_nothing_asked(cache, why, given, options)
            workspace.remember_dataset(name)
            say(f"nothing to do: {path} {why}")
            return None
        _check_format(cache, options)
        if options.retry_failed:
            say(f"{cache.requeue(['failed'])} failed videos will be tried once more")
        # The demo makes its own videos.
        missing = name != "demo" and not Path(settings.data or Path("data") / name).exists()
        if missing and not (options.again or cache.ledger.counts()["pending"]):
            say(f"the videos are not at hand, and not needed: all {len(cache.dataset.videos)} are extracted")
            dataset, root = cache.dataset, Path()
        else:
            dataset, root = plan.find_dataset(
                workspace, name, settings, allow_remote=options.allow_remote, recorded=cache.dataset
            )
            plan.update_dataset(cache, dataset)
            plan.compare_files(cache, plan.paths_of(dataset, root))
            if options.again:
                plan.extract_again(cache, dataset, options.again)
            # Otherwise the next command would follow the folder of before.
            cache.remember({"data": settings.data, "subset": settings.subset})
        if not cache.ledger.counts()["pending"] and settings.same_weights(given, cache.settings):
            workspace.remember_dataset(name)
            say(f"nothing to do: every video of {name} has its entry in {path}")
            return None
    return Extraction(workspace=workspace, dataset=dataset, root=root, settings=settings, options=options)


def summary(cache: FeatureCache) -> str:
    """Counts of the videos, then the failed and the suspect ones with their reasons."""
    counts = cache.ledger.counts()
    lines = [
        f"{sum(counts.values())} videos: {counts['done']} done, {counts['suspect']} suspect (used, but look at them), "
        f"{counts['failed']} failed" + (f", {counts['pending']} to do" if counts["pending"] else "")
    ]
    if changed := sorted(video for video, file in cache.ledger.files().items() if file and not file.hash):
        lines.append(
            f"the files of {len(changed)} videos changed while they were extracted, and the same command extracts them "
            f"again: {some(changed)}"
        )
    lines += _listed(cache, "failed", counts["failed"]) + _listed(cache, "suspect", counts["suspect"])
    if counts["failed"] and not cache.imported:
        lines.append("--retry-failed tries the failed videos once more; --limit lets a video cost more than by default")
    return "\n".join(lines)


def _listed(cache: FeatureCache, status: Status, count: int) -> list[str]:
    lines = [
        f"  {status} {visible(outcome.video_id)}: {visible(outcome.reason)}"
        for outcome in islice(cache.ledger.outcomes(status), LISTED)
    ]
    return lines + ([f"  and {count - LISTED} more: `mrrn cache info --json` lists all"] if count > LISTED else [])


def _nothing_to_extract(cache: FeatureCache) -> str:
    """Why nothing can be extracted into a cache, a phrase; empty if it can."""
    if cache.read_only:
        return f"is a working copy of {cache.storage.address}, which is read only"
    return "has features that another program made; `mrrn cache import` brings them up to date" * cache.imported


def _check_nothing_asked(cache: FeatureCache, why: str, given: Mapping[str, JSON], options: OneTimeOptions) -> None:
    # Other settings of imported features than those of the machine mean another extraction.
    asked: dict[str, object] = {
        flag_of(each): cache.imported
        for each in fields(RequestedSettings)
        if each.name in given and each.name not in ("device", "jobs")
    }
    asked |= {"--data": given.get("data"), "--subset": given.get("subset"), "--again": options.again}
    asked |= {"--retry-failed": options.retry_failed, "--engine": options.engine != "local"}
    if option := next((name for name, value in asked.items() if value), None):
        raise CacheError(
            f"the cache {cache.path} {why}, and {option} was given: leave it out to use the cache, or extract into "
            "another folder (WORK= or --work) without CACHE="
        )


def _check_format(cache: FeatureCache, options: OneTimeOptions) -> None:
    if options.backend not in (None, cache.backend):
        raise CacheError(
            f"the cache {cache.path} has format {cache.backend}, and {options.backend} was asked for by "
            f"{source_of('--format')}: leave it out to go on, or make a copy in that format by `mrrn cache convert`"
        )
