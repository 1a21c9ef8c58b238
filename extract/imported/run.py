"""`mrrn cache import`: features that another program made, as a cache to train from.

A CSV file says which videos there are, with labels and splits, as for extraction. What is on disk is the truth: the
same command continues, and imports again what has changed since.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from cache.common.console import FINISHED_WITH_FAILURES, FiniteRange, say, work_option
from cache.common.errors import DatasetError
from cache.common.progress import progress
from cache.common.text import some, visible
from cache.common.workspace import Workspace
from cache.dataset import check_dataset_name
from cache.fingerprint import CENTER_VIEW, DTYPE, FORMAT_VERSION, IMPORTED, LEVELS, Fingerprint, Level

if TYPE_CHECKING:
    from cache.store import FeatureCache
    from extract.pipeline import VideoFeatures

SHARD_BYTES: Final = 256 << 20
"""Bytes of features after which a shard is committed."""


def _parse_arrays(_context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    chosen = {}
    for text in given:
        level, _, name = text.partition("=")
        if level not in LEVELS or not name:
            raise click.BadParameter(f"{text!r} is not LEVEL=NAME, where LEVEL is one of {', '.join(LEVELS)}")
        chosen[level] = name
    return {level: chosen[level] for level in LEVELS if level in chosen}


@click.command("import")
@click.argument("features", type=click.Path(path_type=Path))
@work_option
@click.option("--dataset", required=True, metavar="NAME", help="A new name for this data set with these features.")
@click.option(
    "--data",
    "manifest",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="CSV file with the columns video,label,split1, as for extraction; videos may be named without a suffix.",
)
@click.option("--source", required=True, metavar="TEXT", help="Which network made them, with which weights, of what.")
@click.option(
    "--array",
    "arrays",
    metavar="LEVEL=NAME",
    multiple=True,
    callback=_parse_arrays,
    help="Which array is which level; repeatable. [default: those called low, mid, high; one array alone is high]",
)
@click.option(
    "--fps",
    type=FiniteRange(min=0, min_open=True),
    metavar="RATE",
    help="Features a second, for videos without times.",
)
@click.option("--subset", is_flag=True, help="Allow that listed videos are missing; reports say so.")
def import_command(
    features: Path, workspace: Workspace, dataset: str, manifest: Path, source: str, subset: bool, **rules: Any
) -> None:
    """Make a cache of FEATURES that another program made, to train heads from.

    FEATURES is a folder of .npy, .npz or HDF5 files, or one file with all videos (docs/sharing.md). An array is
    [frames, channels], [views, frames, channels], or [channels] for a whole video. The same command continues, and
    imports again what has changed. Ends with exit code 3 if features of some videos could not be used; they are listed.

    \b
    mrrn cache import i3d/ --dataset mine-i3d --data list.csv \\
      --source "I3D, Kinetics-400, RGB" --fps 1.5625
    """
    from extract.datasets import PUBLISHED
    from extract.datasets.manifest import read_manifest
    from extract.datasets.published import match_files
    from extract.imported.arrays import find_arrays
    from extract.plan import check_classes

    if check_dataset_name(dataset) in PUBLISHED:
        raise DatasetError(f"{dataset!r} names a data set as it is published; give another name, such as {dataset}-i3d")
    listed = read_manifest(dataset, manifest, remote=True, files=False, say=say)
    found, told = find_arrays(features)
    for line in told:
        say(f"{features}: {line}")

    from extract.imported.features import ImportRules, by_video, choose_arrays, read_video, with_shape

    arrays, strange = by_video(found, listed.videos)
    if strange:
        say(f"{features}: {len(strange):,} arrays are of no listed video: {some(strange)}")
    files = [video.path for video in listed.videos if video.id in arrays]
    with_features = match_files(listed, files, features, None, subset=subset)
    check_classes(with_features, features)
    how = with_shape(ImportRules(arrays=rules["arrays"] or choose_arrays(arrays), fps=rules["fps"]), arrays)
    assert how.views
    assert how.widths
    made_with = Fingerprint(
        identity={
            "backbone": IMPORTED + " ".join(visible(source).split()),
            "weights": "imported",
            "levels": list(how.widths),
            "widths": how.widths,
            "views": [CENTER_VIEW, *(f"view{number}" for number in range(1, how.views))],
            "dtype": DTYPE,
            "format_version": FORMAT_VERSION,
        },
        environment={},
    )
    settings = {"features": str(features.absolute()), "data": str(manifest.absolute()), "subset": subset, **rules}

    from cache.store import FeatureCache
    from extract.plan import update_dataset
    from extract.run import advise_training, summary

    path = workspace.cache(dataset)
    if not path.exists():
        FeatureCache.create(path, dataset=with_features, fingerprint=made_with, settings=settings).close()
    with FeatureCache.open_for_extraction(path, made_with) as cache:
        update_dataset(cache, with_features)
        cache.remember(settings)
        _fill(cache, lambda video_id: read_video(video_id, arrays[video_id], how), how.widths)
        workspace.remember_dataset(dataset)
        levels = ", ".join(f"{level} {width}" for level, width in how.widths.items())
        say(f"{summary(cache)}\n{path}: {cache.ledger.num_frames():,} frames, levels {levels}")
        advise_training(workspace, dataset, cache)
        if cache.ledger.counts()["failed"]:
            raise click.exceptions.Exit(FINISHED_WITH_FAILURES)


def _fill(cache: "FeatureCache", read: "Callable[[str], VideoFeatures]", widths: Mapping[Level, int]) -> None:
    """Commit what is pending, what failed before, and what is other than it was imported."""
    from extract.claims import ClaimQueue
    from extract.shards import FinishedShard, ShardCutter

    before = cache.ledger.files()
    changed = []
    with progress("comparing", len(before), "videos") as bar:
        for done, (video_id, file) in enumerate(before.items(), 1):
            if file is not None and read(video_id).outcome.file != file:
                changed.append(video_id)
            bar.update(done)
    cache.requeue(["failed"])
    if changed:
        say(f"{len(changed):,} videos are imported again, because their features have changed: {some(changed)}")
        cache.requeue(videos=changed)
    rows = max(1, SHARD_BYTES // (2 * sum(widths.values())))
    pending, done = cache.ledger.counts()["pending"], 0
    # Claimed as many at a time as for a GPU: they take seconds.
    with (
        progress("import", pending, "videos") as bar,
        ClaimQueue(cache, {}, cache.fingerprint, device="cuda") as claims,
    ):
        while claim := claims.wait_for_claim():
            for task in claims.tasks(claim):
                cutter = ShardCutter(task.claim, rows)
                no_paths = dict.fromkeys((video.id for video in task.claim.videos), None)
                for video_id in no_paths:
                    for shard in cutter.add(read(video_id)):
                        claims.commit(FinishedShard(task.claim, tuple(shard), cutter.complete, no_paths))
                    bar.update(done := done + 1)
            claims.drain()
