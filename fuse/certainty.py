"""What a report's probabilities are worth, as the commands say it, and the command that makes them worth more."""

import shlex

import click

from cache.common.console import say
from fuse.choice import RunChoice
from fuse.results import Results
from fuse.scores import can_calibrate
from train.config import train_command
from train.recipes import recipes_for


def say_certainty(choice: RunChoice, results: Results) -> None:
    """Print what the probabilities are worth, and what to do where they are not calibrated, with its price."""
    say(f"probabilities: {results.certainty}")
    if results.calibration is None and can_calibrate(results.cache, results.split, choice.seed):
        seconds = sum(epoch.seconds for epochs in results.curves.values() for epoch in epochs)
        price = f" in about {0.8 * seconds:,.0f} s" if seconds else ""
        by_make = "" if choice.run else "`make fuse` with CALIBRATE=1, or "
        click.echo(f"  such runs are trained{price} by {by_make}this command:\n  {_holdout_command(choice, results)}")


def _holdout_command(choice: RunChoice, results: Results) -> str:
    """Trains the held-out runs beside the chosen ones."""
    if choice.run is None or results.config is None:
        return shlex.join(["mrrn", "train", *choice.options(), "--holdout"])
    command = train_command(results.config, recipes_for(results.cache.dataset.source), holdout=True)
    return shlex.join(["mrrn", *command, *choice.work_option()])
