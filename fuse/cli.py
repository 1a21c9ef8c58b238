"""`python -m fuse`: stage three, scores to predictions, tables, figures and a page to read."""

import click

from cache.console import StageGroup, choose_dataset, dataset_option, work_option
from cache.workspace import Workspace

split_option = click.option(
    "--split", type=click.IntRange(1, 3), default=1, show_default=True, help="Official split whose test half is scored."
)
pool_option = click.option(
    "--pool",
    type=click.Choice(["mean", "max"]),
    default="mean",
    show_default=True,
    help="Temporal pooling of the heads to fuse (equations 8 and 9).",
)
seed_option = click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the runs to fuse."
)


@click.group(cls=StageGroup, invoke_without_command=True)
@work_option
@dataset_option
@pool_option
@split_option
@seed_option
@click.pass_context
def main(context: click.Context, workspace: Workspace, dataset: str | None, pool: str, split: int, seed: int) -> None:
    """Fuse the three levels' scores into one prediction per video, and report how good it is.

    Clip scores are averaged per video; the levels are added by equation 10 (0.7 high + 0.2 mid + 0.1 low), with
    their plain mean beside it. The report stands beside the paper's figures in
    WORK/report/DATASET/splitN/: report.html, results.json, and the tables and figures as files.

    \b
    Examples:
      python -m fuse                        the dataset extracted last, split 1
      python -m fuse --dataset ucf101 --split 2 --pool max
    """
    if context.invoked_subcommand is None:
        _fuse(workspace, choose_dataset(workspace, dataset), pool, split, seed)


def _fuse(workspace: Workspace, dataset: str, pool: str, split: int, seed: int) -> None:
    from fuse.publish import publish
    from fuse.results import caveats, evaluate
    from fuse.runs import read_levels
    from fuse.source import read_source
    from fuse.summary import made_now
    from fuse.tables import table_3, to_text

    results = evaluate(read_levels(workspace, dataset, split, pool, seed), read_source(workspace, dataset), split)
    notes = caveats(results)
    page = publish(workspace.report(dataset, split), results, notes, made_now())
    click.echo(to_text(table_3(results, notes, literature=False)))
    click.echo(f"\nreport: {page}")
