"""`mrrn`: the commands of all stages under one name, each imported when it is asked for: help costs nothing."""

from importlib import import_module

import click

from cache.common.console import StageGroup

COMMANDS = {
    "extract": ("extract.cli", "main", "Stage one: videos to cached features."),
    "train": ("train.cli", "main", "Stage two: cached features to heads and scores."),
    "fuse": ("fuse.cli", "main", "Stage three: scores to predictions, tables, report."),
    "doctor": ("fuse.cli", "doctor", "What may be wrong with a dataset."),
    "compare": ("fuse.cli", "compare", "Trained runs side by side: paired differences."),
    "predict": ("fuse.cli", "predict", "The most probable classes of new videos."),
    "bundle": ("fuse.cli", "bundle", "Trained heads in one folder, to hand to others."),
    "export": ("fuse.cli", "export", "Backbone, heads and fusion as one ONNX file."),
    "cache": ("cache.cli", "main", "What a cache holds; check, mend, convert, export it."),
    "data": ("extract.cli", "data_command", "Download the official videos and splits."),
    "probe": ("extract.cli", "probe_command", "Measure decoders and network on your own videos."),
    "recipes": ("train.cli", "recipes", "The recipes and what each changes."),
    "sweep": ("train.cli", "sweep", "Train a grid of settings."),
    "reproduce": ("fuse.cli", "reproduce", "All of the paper's tables and figures."),
}
"""Module and name of each command, and its line in the list; in the order in which a user needs them."""


class _LazyGroup(StageGroup):
    """A group that holds names and short helps of its commands, and imports a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, name, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(module), name)
        if isinstance(command, click.Group) and cmd_name == "cache":
            # It reads manifests, as extraction does, which `cache` knows nothing of.
            command.add_command(import_module("extract.imported.run").import_command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.group("mrrn", cls=_LazyGroup, commands={name: click.Command(name) for name in COMMANDS})
@click.version_option(package_name="mrrn")
def main() -> None:
    """Extract features of videos once, train heads from the cache, fuse them into predictions.

    \b
      mrrn extract --dataset mine --data videos/     videos in a folder per class
      mrrn train                                     a head for each level
      mrrn fuse                                      accuracy, and report.html
      mrrn predict clip.mp4

    Everything is written below work/ (--work). `mrrn COMMAND --help` has the options of each.
    """
