"""`mrrn cache`: inspect and maintain a cache."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cache.common.console import NameChoice, StageGroup, choose_dataset, dataset_option, say, work_option
from cache.common.text import visible
from cache.common.workspace import Workspace

if TYPE_CHECKING:
    from cache.export import Container, Grouping
    from cache.shards import Backend


@click.group(cls=StageGroup)
def main() -> None:
    """Inspect and maintain a feature cache.

    Each command takes the cache's FOLDER, or finds it by --work and --dataset.

    \b
      mrrn cache info
      mrrn cache info work/cache/ucf101 --json
      mrrn cache verify --dataset hmdb51
      mrrn cache convert work/cache/ucf101 ucf101-zarr --to zarr
    """


def cache_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the argument and options that choose the cache; the command gets its folder as `path`."""

    @click.argument("folder", required=False, type=click.Path(path_type=Path))
    @work_option
    @dataset_option
    def with_path(folder: Path | None, workspace: Workspace, dataset: str | None, **options: Any) -> None:
        if folder is None:
            folder = workspace.existing_cache(choose_dataset(workspace, dataset), damaged=True)
        command(folder, **options)

    with_path.__name__, with_path.__doc__ = command.__name__, command.__doc__
    with_path.__click_params__ += getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    return with_path


@main.command()
@cache_argument
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON, with all suspect and failed videos.")
def info(path: Path, as_json: bool) -> None:
    """Videos, frames, bytes, failures and their reasons, fingerprint."""
    from cache.info import cache_info, info_text
    from cache.store import FeatureCache

    with FeatureCache.open(path) as cache:
        found = cache_info(cache)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        say(info_text(found))


@main.command("verify")
@cache_argument
def verify_command(path: Path) -> None:
    """Read every byte and list what is not as it was written.

    Writes nothing. Exit code 1 if anything is damaged, else 0.
    """
    from cache.common.errors import DamageError
    from cache.common.interrupts import done_so_far
    from cache.verify import verify

    with done_so_far(lambda: "nothing was changed"):
        findings = verify(path)
    for finding in findings:
        say(("note: " if finding.harmless else "") + visible(finding.what))
        for video_id in finding.videos:
            say(f"  {visible(video_id)}")
    damage = [finding for finding in findings if not finding.harmless]
    if damage:
        raise DamageError(
            f"{len(damage)} things in {path} are not as they were written. `mrrn cache repair {path}` moves "
            "damaged shards to quarantine/ and queues their videos again"
        )
    say(f"{path}: everything is as it was written")


@main.command("repair")
@cache_argument
@click.option("--prune", is_flag=True, help="Also delete for good what is in quarantine/ and what no reader needs.")
@click.option("--dry-run", is_flag=True, help="Change nothing; list what would be done.")
def repair_command(path: Path, prune: bool, dry_run: bool) -> None:
    """Move damaged shards to quarantine/ and queue their videos again.

    The folder quarantine/ is in the cache; the next extraction fills the gaps. Nothing that could still be good is
    deleted without --prune.
    """
    from cache.repair import repair

    done = repair(path, prune=prune, dry_run=dry_run)
    for line in done:
        say(("would have " if dry_run else "") + visible(line))
    if dry_run:
        say(f"{path}: nothing was changed")
    else:
        gaps = "`make extract` (for imported features `mrrn cache import`) now fills the gaps"
        say(f"{path}: {gaps if done else 'there was nothing to repair'}")


@main.command("leases")
@cache_argument
@click.option("--break", "end", is_flag=True, help="Take away leases that nobody renews; watches them for a minute.")
def leases_command(path: Path, end: bool) -> None:
    """List which processes have taken videos to extract, and whether they are alive.

    Leases of processes on this machine end with them, those of other machines when they were not renewed for two
    minutes; --break is for those that do not end by themselves. Commits of their former owners are refused.
    """
    from cache.leases import break_leases, lease_text
    from cache.store import FeatureCache

    with FeatureCache.open(path) as cache:
        lines = break_leases(cache) if end else [lease_text(lease) for lease in cache.storage.leases()]
    for line in lines or [f"{path}: nobody holds anything"]:
        say(visible(line))


@main.command("convert")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--to", "backend", type=NameChoice(["h5", "zarr"]), required=True, help="Format of the new cache.")
def convert_command(folder: Path, target: Path, backend: "Backend") -> None:
    """Write the cache FOLDER again at TARGET in another format.

    Proves that both hold the same, bit by bit. The same command continues an interrupted conversion.
    """
    from cache.convert import convert
    from cache.store import FeatureCache

    with FeatureCache.open(folder) as source:
        count = convert(source, target, backend)
    say(f"{target}: {count:,} videos as {backend}, equal to {folder} bit by bit")


@main.command("attach")
@click.argument("location", metavar="ADDRESS")
@work_option
@dataset_option
@click.option("--copy-gib", type=click.IntRange(min=1), default=64, show_default=True, help="Room for shards.")
def attach_command(location: str, workspace: Workspace, dataset: str | None, copy_gib: int) -> None:
    """Make a working copy of a remote cache: in an object store, or published on a web server.

    ADDRESS is s3://BUCKET/PREFIX, or https://HOST/PATH (read only; the same command takes what was published since). It
    is made below --work, under the dataset's name, and works with every command as a local cache does: shards are
    fetched when first read, and kept while there is room. Credentials come from the environment (AWS_*).
    """
    from cache.remote.attachment import RemoteCache
    from cache.remote.web import parse_location
    from cache.store import FeatureCache

    where = RemoteCache(parse_location(location))
    name = dataset or where.contents[1].name
    with FeatureCache.attach(workspace.cache(name), where, copy_gib << 30) as cache:
        counts = cache.ledger.counts()
        workspace.remember_dataset(name)
    shown = ", ".join(f"{number:,} {status}" for status, number in counts.items())
    say(f"{workspace.cache(name)}: a working copy of {where} ({shown})")


@main.command("publish")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--source", metavar="TEXT", help="Which videos these are features of. Needed the first time.")
@click.option("--license", "licence", metavar="TEXT", help="What others may do with them. Needed the first time.")
def publish_command(folder: Path, target: Path, source: str | None, licence: str | None) -> None:
    """Write the cache FOLDER as a folder TARGET that any web server can serve, with a data card.

    Others train from it with CACHE=https://… and need no videos (docs/sharing.md). The same command continues when it
    was interrupted, and adds what is new since; what was published does not change.
    """
    from cache.publish import publish
    from cache.store import FeatureCache

    with FeatureCache.open(folder) as cache:
        digest = publish(cache, target, source, licence)
    say(f"{target}: published; its index has sha256 {digest}")
    say(f"look at {target / 'README.md'}, then put the folder on a web server")


@main.command("export")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--to", "container", type=NameChoice(["npz", "safetensors"]), default="npz", show_default=True)
@click.option("--per", "grouping", type=NameChoice(["video", "level"]), default="video", show_default=True)
def export_command(folder: Path, target: Path, container: "Container", grouping: "Grouping") -> None:
    """Write the features in the cache FOLDER as plain files below TARGET, for other programs.

    \b
    --per video   TARGET/<video id>.npz: low, mid, high [views, frames, channels], pts_seconds
    --per level   TARGET/<level>.npz: features, offsets, pts_seconds, video_ids
    """
    from cache.export import export
    from cache.store import FeatureCache

    with FeatureCache.open(folder) as cache:
        say(f"{target}: {export(cache, target, container, grouping):,} files")
