"""`python -m cache`: look at a cache and look after it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cache.console import StageGroup, choose_dataset, dataset_option, work_option
from cache.workspace import Workspace


@click.group(cls=StageGroup)
def main() -> None:
    """Look at a feature cache and look after it.

    Each command takes the cache's FOLDER, or finds it by --work and --dataset.

    \b
      python -m cache info
      python -m cache info work/cache/ucf101 --json
    """


def cache_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """The argument and options that say which cache; the command gets its folder as `path`."""

    @click.argument("folder", required=False, type=click.Path(path_type=Path))
    @work_option
    @dataset_option
    def with_path(folder: Path | None, workspace: Workspace, dataset: str | None, **options: Any) -> None:
        path = folder if folder is not None else workspace.cache(choose_dataset(workspace, dataset))
        command(path, **options)

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
    click.echo(json.dumps(found, indent=2, ensure_ascii=False) if as_json else info_text(found))
