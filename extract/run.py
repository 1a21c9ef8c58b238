"""One extraction from the command line: look what is there, say what will be done, do it, say what came of it."""

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import click

from cache.common.console import FINISHED_WITH_FAILURES, Progress, choose_dataset, progress
from cache.common.errors import CacheError
from cache.common.workspace import Workspace
from cache.dataset import Dataset
from cache.fingerprint import Fingerprint
from cache.remote.client import Location
from cache.shards import Backend
from cache.store import FeatureCache
from extract import plan
from extract.datasets import load_dataset
from extract.local import work_on
from extract.meter import Meter, ticking
from extract.network.weights import Weights
from extract.request import Request, check_against
from extract.settings import ExtractSettings, fingerprint
from extract.summary import summarise

LISTED = 5
"""Names shown where many could be."""


def run(options: Mapping[str, Any]) -> int:
    """Extract as `options` (of `extract.cli`) say; the exit code."""
    workspace: Workspace = options["workspace"]
    name = choose_dataset(workspace, options["dataset"])
    path = workspace.cache(name)
    cache = FeatureCache.find(path, options["location"])
    request = Request.of(name, options, cache.settings if cache else None)
    if cache is None:
        found = _find(request, options, name, workspace)
        return _extract(workspace, request, options, *found)
    with cache:
        check_against(request, cache.fingerprint, allow_drift=options["allow_drift"], where=f"the cache {path}")
        _check_format(cache, options["backend"])
        if options["retry_failed"]:
            click.echo(f"{cache.requeue(['failed'])} failed videos will be tried once more")
        if _videos_are_away(request, name) and not cache.ledger.counts()["pending"]:
            click.echo(f"the videos are not at hand, and not needed: all {len(cache.dataset.videos)} are extracted")
            dataset, root = cache.dataset, Path()
        else:
            dataset, root = _find(request, options, name, workspace)
            _follow(cache, dataset)
        if not cache.ledger.counts()["pending"] and request.same_weights(cache.settings):
            workspace.remember_dataset(name)
            click.echo(f"nothing to do: every video of {name} has its entry in {path}")
            return _finish(cache)
    return _extract(workspace, request, options, dataset, root)


def _find(request: Request, options: Mapping[str, Any], name: str, workspace: Workspace) -> tuple[Dataset, Path]:
    data, subset = request.values["data"], request.values["subset"]
    # Not what the cache remembers: a cache that came from elsewhere shall not open connections by itself.
    remote = options["allow_remote"]
    return load_dataset(name, data and Path(data), subset=subset, work=workspace.root, remote=remote)


def _videos_are_away(request: Request, name: str) -> bool:
    """Whether the folder of the videos is not there; the demo makes its own."""
    return name != "demo" and not Path(request.values["data"] or Path("data") / name).exists()


def _check_format(cache: FeatureCache, asked: str | None) -> None:
    if asked not in (None, cache.backend):
        raise CacheError(
            f"the cache {cache.path} has format {cache.backend}, and {asked} was asked for: leave FORMAT= (--format) "
            "out to go on, or make a copy in the other format with `python -m cache convert`"
        )


def _follow(cache: FeatureCache, found: Dataset) -> None:
    """Bring the cache's data set up to date: new videos are added, vanished ones told."""
    differ = plan.changes(cache.dataset, found)
    updated = plan.merged(cache.dataset, found)
    if updated != cache.dataset:
        cache.replace_dataset(updated)
    if differ.new:
        click.echo(f"new since the cache was made: {len(differ.new)} of the videos, {_some(differ.new)}")
    if differ.vanished:
        click.echo(f"{len(differ.vanished)} videos are no longer there (their features stay): {_some(differ.vanished)}")


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _extract(workspace: Workspace, request: Request, options: Mapping[str, Any], dataset: Dataset, root: Path) -> int:
    """Open or make the cache, then work until no video is left."""
    if options["engine"] == "ray":
        return _extract_on_cluster(workspace, request, options, dataset, root)
    from extract.device import find_devices, resolve
    from extract.network.weights import load_weights

    devices = find_devices(request.values["device"])
    settings = resolve(request, devices[0], options["jobs"])
    weights = load_weights(settings.weights, settings.backbone)
    made_with = fingerprint(settings, weights_text=weights.text, weights_sha256=weights.sha256)
    with _opened(workspace, request, options, dataset, settings, made_with) as cache:
        if pending := cache.ledger.counts()["pending"]:
            if not options["worker"]:
                _announce(cache, dataset, root, settings, weights, pending, " and ".join(devices))
            if len(devices) > 1:
                work_on(
                    devices, cache, workspace, settings.limits, jobs=options["jobs"], allow_drift=options["allow_drift"]
                )
            else:
                where = plan.paths(dataset, root)
                strict = request.values["strict"]
                _work(cache, where, settings, weights, made_with, strict=strict, quiet=options["worker"])
        return _finish(cache, quiet=options["worker"])


def _extract_on_cluster(
    workspace: Workspace, request: Request, options: Mapping[str, Any], dataset: Dataset, root: Path
) -> int:
    """The same on the machines of a Ray cluster."""
    from extract.cluster.connect import connected, device_of, settings_there, slots
    from extract.network.weights import load_weights

    weights = load_weights(request.values["weights"], request.values["backbone"])
    with connected():
        from extract.cluster.job import Assignment, extract_on

        device = device_of(request.values["device"])
        place = slots(device, workers=options["workers"], jobs=options["jobs"])
        settings, made_with = settings_there(request, device, place, weights)
        with _opened(workspace, request, options, dataset, settings, made_with) as cache:
            if pending := cache.ledger.counts()["pending"]:
                where = f"{place.workers} workers ({device}), {place.num_cpus} cores each,"
                _announce(cache, dataset, root, settings, weights, pending, where)
                strict, drift = bool(request.values["strict"]), options["allow_drift"]
                # Workers have other working folders.
                reopen, there = FeatureCache.open(cache.path.absolute()).__reduce__()
                assignment = Assignment(partial(reopen, *there), settings, strict=strict, allow_drift=drift)
                tally = extract_on(place, cache, plan.paths(dataset, root), made_with, assignment, weights)
                click.echo(tally.summary())
            return _finish(cache)


def _opened(
    workspace: Workspace,
    request: Request,
    options: Mapping[str, Any],
    dataset: Dataset,
    settings: ExtractSettings,
    made_with: Fingerprint,
) -> FeatureCache:
    """The cache to add to, made where there is none; says where others add to it as well."""
    path = workspace.cache(dataset.name)
    if not path.exists():
        backend: Backend = options["backend"] or ("zarr" if options["location"] else "h5")
        _create(path, dataset, made_with, request.record(settings), backend, options["location"])
    cache = FeatureCache.open_for_extraction(path, made_with, options["allow_drift"])
    workspace.remember_dataset(dataset.name)
    if cache.ledger.next_expiry() is not None and not options["worker"]:
        click.echo(f"another extractor is at work on {path}; the videos are shared, none is extracted twice")
    return cache


def _create(
    path: Path,
    dataset: Dataset,
    made_with: Fingerprint,
    settings: Mapping[str, Any],
    backend: Backend,
    location: Location | None,
) -> None:
    """Make an empty cache; where another extractor was quicker, its cache will do."""
    try:
        FeatureCache.create(
            path, dataset=dataset, fingerprint=made_with, settings=settings, backend=backend, location=location
        ).close()
    except CacheError:
        if not (path / "cache.json").exists():
            raise


def _announce(
    cache: FeatureCache,
    dataset: Dataset,
    root: Path,
    settings: ExtractSettings,
    weights: Weights,
    pending: int,
    where: str,
) -> None:
    """Say what is about to be done, before the long part."""
    which = "untrained" if weights.text.startswith("random:") else f"sha256 {weights.sha256[:12]}"
    subset = " (a subset)" if dataset.subset else ""
    limits = [f"at most {settings.max_frames} frames"] if settings.max_frames else []
    limits += [f"at most {settings.fps:g} frames a second"] if settings.fps else []
    click.echo(f"{dataset.name}: {pending} of {len(dataset.videos)} videos{subset} to extract, from {root}")
    click.echo(f"  {settings.backbone} with {weights.text} ({which}), levels {', '.join(settings.levels)}")
    click.echo(f"  views {', '.join(settings.views)}{''.join(f', {limit}' for limit in limits)}")
    click.echo(
        f"  on {where} in {settings.precision}, batches of {settings.batch_frames}; "
        f"{settings.jobs} decoding ({settings.decoder})"
    )
    frames = plan.frames_per_video(cache, plan.paths(dataset, root), settings)
    click.echo("; ".join(filter(None, [f"  into {cache.place}", plan.check_disk(cache, settings, pending, frames)])))


def _work(
    cache: FeatureCache,
    paths: Mapping[str, Path],
    settings: ExtractSettings,
    weights: Weights,
    made_with: Fingerprint,
    *,
    strict: bool,
    quiet: bool,
) -> None:
    """Extract until no video is left, neither here nor with other extractors."""
    from extract.claims import Work
    from extract.device import shard_rows
    from extract.network.engine import open_engine
    from extract.pipeline import extract_features
    from extract.shards import shards_of

    engine, meter = open_engine(settings, weights), Meter()
    pending = cache.ledger.counts()["pending"]
    with (
        nullcontext() if quiet else progress("extract", pending, "videos") as bar,
        Work(cache, paths, made_with, device=settings.device, say=click.echo) as work,
        ticking(1.0, lambda: _show(bar, meter.finished, meter.text())),
    ):
        extract = partial(extract_features, settings=settings, engine=engine, meter=meter)
        rows = shard_rows(settings.device)
        while claim := work.wait_for_claim():
            for shard in shards_of(work.tasks(claim), extract, shard_rows=rows, strict=strict, meter=meter):
                work.add(shard)
            work.drain()


def _show(bar: Progress | None, finished: int, text: str) -> None:
    if bar is not None:
        bar.update(finished, text)


def _finish(cache: FeatureCache, *, quiet: bool = False) -> int:
    """Tell what became of all videos."""
    if not quiet:
        click.echo(summarise(cache))
    return FINISHED_WITH_FAILURES if cache.ledger.counts()["failed"] else 0
