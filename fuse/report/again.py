"""Shell commands that make a report's figures again, from everything that its cache and runs recorded."""

import shlex
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, Final

from cache.fingerprint import IMPORTED, is_imported
from extract.settings import RequestedSettings, as_json, device_defaults, flag_of
from fuse.results import Results
from train.config import train_command
from train.recipes import recipes_for

SETTLED: Final = ("device", "depths")
"""Settings of which the first may be another one, and the second stands in `--levels`."""


def commands_of(results: Results) -> list[str]:
    """The commands of all three stages, each on one line; what is a default stands in none.

    Names are quoted, because they come from outside. They work in `work/`; with `--work` anywhere else.
    """
    which = ["--dataset", results.dataset, "--split", str(results.split)]
    recipes, config = recipes_for(results.cache.dataset.source), results.config
    held = (False, True) if results.searched_weights and not results.runs["high"].get("watch") else (False,)
    commands = [
        _import(results)
        if is_imported(results.cache.identity)
        else ["extract", "--dataset", results.dataset, *_settings(results)],
        *([train_command(config, recipes, holdout=each) for each in held] if config else [["train", *which]]),
        ["fuse", *which, "--run", results.run],
    ]
    return [shlex.join(["mrrn", *command]) for command in commands]


def _import(results: Results) -> list[str]:
    """The command for features that another program made; who has them from a published cache knows no folder."""
    cache, settings = results.cache, results.cache.settings
    command = ["cache", "import", str(settings.get("features", "FEATURES")), "--dataset", results.dataset]
    command += ["--data", str(settings.get("data", "FILE"))]
    command += ["--source", str(cache.identity["backbone"]).removeprefix(IMPORTED)]
    for level, name in settings.get("arrays", {}).items():
        command += ["--array", f"{level}={name}"]
    command += ["--fps", f"{settings['fps']:g}"] if settings.get("fps") else []
    return [*command, *(["--subset"] if settings.get("subset") else [])]


def _settings(results: Results) -> Iterator[str]:
    """Options of the extraction; of a cache that remembers nothing those that its fingerprint tells."""
    cache = results.cache
    known: dict[str, Any] = {**cache.environment, **cache.identity, **cache.settings}
    usual = {"batch_frames": device_defaults(str(cache.environment.get("device"))).batch_frames}
    for each in fields(RequestedSettings):
        value = known.get(each.name)
        default = usual.get(each.name, as_json(each.default))
        if not each.metadata["option"] or each.name in SETTLED or value in (None, {}, default):
            continue
        if each.name == "data" and cache.dataset.source == "demo":
            continue
        flag = flag_of(each)
        match value:
            case bool():
                yield flag
            case dict():
                for name, number in value.items():
                    yield from (flag, f"{name}={number}")
            case list() | tuple():
                yield from (flag, ",".join(value))
            case _:
                yield from (flag, str(value))
    if known.get("depths") and known.get("levels") == list(RequestedSettings.levels):
        yield from ("--levels", ",".join(known["depths"]))
