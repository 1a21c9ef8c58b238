"""`mrrn fuse`: stage three, scores to predictions, tables, figures and a page to read."""

import shlex
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cache.aggregate import accuracy_text
from cache.common.commands import advised
from cache.common.console import (
    FiniteRange,
    NameChoice,
    StageGroup,
    choose_dataset,
    clips_option,
    dataset_option,
    device_option,
    say,
    say_next,
    work_option,
)
from cache.common.device import check_device
from cache.common.files import write_bytes_durably
from cache.common.text import visible
from cache.common.workspace import Workspace
from cache.fingerprint import LEVELS, is_imported
from extract.network.weights import IMAGENET, check_weights, is_file_spec, is_untrained
from fuse.choice import Choose, RunChoice, run_option, run_options, split_option
from fuse.given import find_files, growing, unless_bundled
from train.split import open_split

if TYPE_CHECKING:
    from fuse.writer import Shape

heads_option = click.option(
    "--bundle", type=click.Path(path_type=Path), help="Use the heads of this bundle instead of trained runs."
)
weights_option = click.option(
    "--weights", help="The backbone's weights, if they are no longer where extraction had them."
)
open_option = click.option("--open", "show", is_flag=True, help="Show the page in the browser.")


@click.group(cls=StageGroup, invoke_without_command=True)
@run_options
@run_option
@clips_option
@open_option
@click.pass_context
def main(context: click.Context, choose: Choose, clips: str | None, show: bool) -> None:
    """Fuse the three levels' scores into one prediction for each video, and report its accuracy.

    Clip scores are averaged over each video; the levels are added by equation 10 (0.7 high + 0.2 mid + 0.1 low), and
    by their plain mean. The report compares the results with the paper's. It is written to
    WORK/report/DATASET/splitN/: report.html, results.json, and the tables and figures as files.

    \b
    Examples:
      mrrn fuse                        the dataset extracted last, split 1
      mrrn fuse --dataset ucf101 --split 2 --pool max
    """
    if context.invoked_subcommand is None:
        page = _fuse(choose(clips))
        if show:
            _open(page)


def _open(page: Path) -> None:
    """Show the page in the user's browser."""
    if not webbrowser.open(page.resolve().as_uri()):
        say("note: no browser was found to open it in", err=True)


def _fuse(choice: RunChoice) -> Path:
    """Write the report and print its figures; returns the path of its page."""
    from fuse.against import lines
    from fuse.certainty import say_certainty
    from fuse.report.build import build
    from fuse.report.sweeps import mean_over_splits
    from fuse.report.tables import models_table, to_text
    from fuse.results import TITLES

    results, notes, page = build(choice)
    say(to_text(models_table(results, notes, {model: model for model in results.models})))
    say("; ".join(f"{model}: {TITLES[model]}" for model in results.models if model not in LEVELS))
    say("\n" + "\n".join(map(visible, lines(results))))
    say_certainty(choice, results)
    if several := mean_over_splits(choice):
        say(f"\n{several}")
    click.echo(f"\nreport: {page}")
    if not is_imported(results.cache.identity):
        which = {"split": str(choice.split)} if choice.split != 1 else {}
        which |= {"run": choice.run} if choice.run else {}
        command = advised("predict", choice.workspace, dataset=choice.dataset, **which, video="clip.mp4")
        say_next(command, "fuse", "demo", "reproduce")
    return page


@main.command()
@run_options
@clips_option
@device_option
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Runs per cell of Tables 1 and 2.")
@click.option("--fresh", is_flag=True, help="Train the levels anew, and replace runs of another state of the cache.")
def reproduce(choose: Choose, clips: str | None, device: str, seeds: int, fresh: bool) -> None:
    """Make all of the paper's tables and figures for an extracted dataset, in one report.

    Trains what is missing (the three levels, the runs that fusion weights are searched on, the grids of Tables 1 and
    2), times Figure 6 on this machine, and writes the report; says beforehand about how long each takes. If it was
    interrupted, the same command continues: what is done is not done again. The demo gets smaller grids and batches.
    """
    choice = choose(clips)
    check_device(device)
    from fuse.reproduce import run_all

    run_all(choice, device=device, seeds=seeds, fresh=fresh)
    _fuse(choice)


@main.command()
@run_options
@run_option
@clips_option
@open_option
def doctor(choose: Choose, clips: str | None, show: bool) -> None:
    """Look for copies, wrong labels and empty videos in a dataset, by its cached features.

    Finds copies of training videos in the test half (also encoded anew, cropped or mirrored), recordings in both
    halves, copies with different labels, likely wrong labels, black, frozen and very short videos, and classes that
    cannot be told apart. Where heads are trained, says what that does to their accuracy. Writes
    WORK/report/DATASET/splitN/: doctor.html, with frames where the videos are at hand, and doctor.csv, a row for each
    finding.

    \b
    Examples:
      mrrn doctor                        the dataset extracted last, split 1
      mrrn doctor --dataset mine --split 2
    """
    choice = choose(clips)
    with open_split(choice.workspace, choice.dataset, choice.split).cache as cache:
        # Not before: what is missing is said without waiting for torch.
        from fuse.doctor import effect, examine, with_black
        from fuse.report.findings import LIST, PAGE, publish, shown, to_text
        from fuse.report.samples import sample_frames
        from fuse.summary import made_now

        diagnosis, weights = examine(cache, choice.split), str(cache.fingerprint.identity.get("weights"))
        changeable = not (cache.imported or cache.read_only)
    frames, frames_note = sample_frames(choice.workspace, choice.dataset, shown(diagnosis))
    diagnosis = with_black(diagnosis, frames)
    parts, note = effect(choice, diagnosis)
    folder = choice.workspace.report(choice.dataset, choice.split)
    notes = [each for each in (note, frames_note) if each]
    if is_untrained(weights):
        notes.insert(0, f"The backbone was never trained ({weights}): what looks alike to it need not be alike.")
    publish(folder, diagnosis, parts, notes, frames, made_now())
    say(to_text(diagnosis, parts, notes))
    click.echo(f"\npage: {folder / PAGE}\nlist: {folder / LIST}")
    if not diagnosis.findings:
        say_next(advised("fuse" if parts else "train", choice.workspace, dataset=choice.dataset), "doctor")
    elif changeable:
        say("look at the page first; then move the files, or change the manifest, and extract again: only that is done")
        say_next(advised("extract", choice.workspace, dataset=choice.dataset), "doctor")
    if show:
        _open(folder / PAGE)


@main.command()
@click.argument("runs", nargs=-1, metavar="RUN RUN...")
@work_option
@dataset_option
@split_option
@open_option
def compare(runs: tuple[str, ...], workspace: Workspace, dataset: str | None, split: int, show: bool) -> None:
    """Trained runs side by side on the same test videos: paired differences, of each class too, and McNemar's test.

    A run is named by its folders in WORK/runs/DATASET/splitN without their level: mean-seed0-paper is the fusion of
    low-, mid- and high-mean-seed0-paper by equation 10. With its level it is that level alone. A path names one of
    another place: of another backbone's cache, for example. The first run is what the others are compared with. The
    page is written beside the report: compare.html.

    \b
    Examples:
      mrrn compare mean-seed0 mean-seed0-paper
      mrrn compare high-mean-seed0 mean-seed0 mean-seed0-linear
      mrrn compare mean-seed0 other/runs/mine/split1/mean-seed0
    """
    from fuse.compare import side_by_side
    from fuse.report.comparison import comparison_page, shown_videos
    from fuse.report.samples import sample_frames
    from fuse.summary import made_now

    name = choose_dataset(workspace, dataset)
    found = side_by_side(runs, workspace, name, split)
    first, *others = found.runs
    for run in found.runs:
        say(f"{visible(run.name)}: {accuracy_text(int(run.correct.sum()), len(run.correct))}")
    for run in others:
        say(f"{visible(run.name)} against {visible(first.name)}: {found.against_first(run).text}")
    for line in found.settings_that_differ():
        say(f"  {visible(line)}")
    page = workspace.report(name, split) / "compare.html"
    frames, frames_note = sample_frames(workspace, name, shown_videos(found))
    write_bytes_durably(page, comparison_page(found, made_now(), frames, frames_note).encode())
    click.echo(f"\npage: {page}")
    if show:
        _open(page)


@main.command()
@click.argument("videos", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="VIDEO...")
@run_options
@run_option
@heads_option
@weights_option
@device_option
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Videos decoded at the same time.")
@clips_option
@click.option(
    "--timeline", "as_timeline", is_flag=True, help="What each window of a video shows, and from when to when."
)
@click.option(
    "--follow",
    type=FiniteRange(0, min_open=True),
    metavar="SECONDS",
    help="With --timeline: read on while the file grows, or from a pipe (-), until nothing has come for SECONDS.",
)
@click.option(
    "--format",
    "shape",
    type=NameChoice(["text", "json", "csv", "vtt"]),
    default="text",
    show_default=True,
    help="json: with the probabilities of all classes, a line for each window of a timeline. csv, vtt (subtitles): "
    "timelines alone.",
)
@click.option("--json", "shape", flag_value="json", help="The same as --format json.")
def predict(
    choose: Choose,
    videos: tuple[Path, ...],
    bundle: Path | None,
    weights: str | None,
    device: str,
    jobs: int,
    clips: str | None,
    as_timeline: bool,
    follow: float | None,
    shape: "Shape",
) -> None:
    """Name the five most probable classes of new videos (files, or folders of them).

    New videos are treated as the dataset's were: the same decoding, transform, backbone and clips, then the three
    heads and their fusion. --clips takes the heads trained with that rule, else the usual ones. Exit code 3: some files
    could not be read; the others are predicted.

    \b
    Examples:
      mrrn predict clip.mp4
      mrrn predict --dataset ucf101 --json holiday/ > holiday.json
      mrrn predict --bundle ucf101-heads --weights resnet34.pth clip.mp4
      mrrn predict --timeline film.mp4
      mrrn predict --timeline --format vtt film.mp4 > film.vtt
    """
    if shape in ("csv", "vtt") and not as_timeline:
        raise click.UsageError(f"--format {shape} is for --timeline")
    if follow is not None and not (as_timeline and len(videos) == 1):
        raise click.UsageError("--follow is for --timeline and one video")
    # Before torch is imported, so that what is wrong is told at once.
    files = find_files(videos) if follow is None else [growing(videos[0])]
    check_device(device)
    check_weights(weights or IMAGENET)
    choice = unless_bundled(choose, bundle, clips)
    if shape == "vtt" and len(files) > 1:
        raise click.UsageError(f"--format vtt writes one file of subtitles; {len(files)} videos were given")
    from extract.network.engine import open_engine
    from fuse.answers import show_predictions
    from fuse.predict import predict as run
    from fuse.trained import backbone_weights, chosen_heads, settings_for
    from fuse.writer import show_timelines

    heads, spec = chosen_heads(choice, bundle, weights, clips)
    settings = settings_for(heads, weights=spec, device=device, jobs=jobs)
    engine = open_engine(settings, backbone_weights(heads, settings))
    if as_timeline:
        show_timelines(heads, settings, engine, files, shape, follow)
    else:
        show_predictions(run(files, heads, settings, engine), heads, files, as_json=shape == "json")


@main.command()
@run_options
@run_option
@heads_option
@weights_option
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="ONNX file to write.")
def export(choose: Choose, bundle: Path | None, weights: str | None, out: Path) -> None:
    """Write backbone, heads and fusion as one ONNX file.

    It takes `crops`, uint8 [clips, frames, height, width, 3]: all clips of a video, resized and cropped as its metadata
    say (ONNX has no resize that rounds as ours does). It gives the video's `probabilities` [classes] and each clip's
    `clip_probabilities` [clips, classes], in fp32. The number of clips is free, their length is the heads'.

    \b
    Example:
      mrrn export --dataset ucf101 --out ucf101.onnx
    """
    check_weights(weights or IMAGENET)
    choice = unless_bundled(choose, bundle)
    from fuse.export import to_onnx
    from fuse.trained import backbone_weights, chosen_heads, settings_for

    heads, spec = chosen_heads(choice, bundle, weights)
    settings = settings_for(heads, weights=spec, device="cpu", jobs=1)
    say(f"{settings.backbone} and its heads become one ONNX graph: a minute or so")
    write_bytes_durably(out, to_onnx(heads, settings, backbone_weights(heads, settings)))
    say(f"{settings.backbone}, three heads and their fusion, {len(heads.classes)} classes: {out}")


@main.command()
@run_options
@run_option
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write. [default: WORK/bundles/DATASET-splitN]")
@clips_option
def bundle(choose: Choose, out: Path | None, clips: str | None) -> None:
    """Copy the three trained heads into one folder to hand to somebody else: safetensors, JSON and a model card.

    The recipient predicts with `mrrn predict --bundle FOLDER`, without the cache or the videos.
    """
    choice = choose(clips).of_new_videos()
    from fuse.bundle import write_bundle
    from fuse.certainty import say_certainty
    from fuse.results import results_of
    from fuse.trained import load_heads

    results = results_of(choice)
    heads = load_heads(choice.folders(), clips=clips)  # raises unless the bundle can be used
    out = out or choice.workspace.root / "bundles" / f"{choice.dataset}-split{choice.split}"
    write_bundle(out, choice.folders(), results, heads.clips)
    say_certainty(choice, results)
    click.echo(f"bundle: {out}")
    weights = results.cache.settings.get("weights") or heads.identity["weights"]
    file = ["--weights", str(weights)] if is_file_spec(str(heads.identity["weights"])) else []
    say_next(shlex.join(["mrrn", "predict", "--bundle", str(out), *file, "clip.mp4"]))
