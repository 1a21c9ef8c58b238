"""`mrrn fuse`: stage three, scores to predictions, tables, figures and a page to read."""

import json
import os
import shlex
import sys
import webbrowser
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cache.aggregate import PAPER_WEIGHTS, accuracy_text
from cache.common.commands import advised
from cache.common.console import (
    FINISHED_WITH_FAILURES,
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
from cache.common.errors import CacheError, DecodeError, MrrnError, ScoreError, TrainingError
from cache.common.files import write_bytes_durably
from cache.common.interrupts import done_so_far
from cache.common.progress import progress
from cache.common.text import visible, wrapped
from cache.common.workspace import Workspace
from cache.fingerprint import LEVELS
from cache.store import FeatureCache
from extract.datasets.paths import require_folder, scan_folder
from extract.network.weights import IMAGENET, check_weights, is_file_spec, is_untrained
from fuse.scores import (
    RunChoice,
    read_baseline,
    read_curve,
    read_heldout,
    read_levels,
    read_scored_cache,
    run_options,
    split_option,
)
from train.split import open_split

if TYPE_CHECKING:
    from extract.network.engine import Engine
    from extract.settings import ExtractSettings
    from fuse.predict import Heads, Prediction
    from fuse.results import Results
    from fuse.timeline import Event, Shape

Choose = Callable[..., RunChoice]
"""Of `run_options`: makes the choice, from the text of `--clips` if there is one."""


open_option = click.option("--open", "show", is_flag=True, help="Show the page in the browser.")


@click.group(cls=StageGroup, invoke_without_command=True)
@run_options
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
    from fuse.report.html import Extras, publish
    from fuse.report.samples import choose_mistakes, choose_samples, sample_frames
    from fuse.report.sweeps import mean_over_splits, read_tables
    from fuse.report.tables import table_3, to_text
    from fuse.report.timing import read_timing, timing_file
    from fuse.results import TITLES, caveats, evaluate, made_now

    tables, workspace = read_levels(choice), choice.workspace
    cache = read_scored_cache(workspace, choice.dataset)
    curves = {level: read_curve(folder) for level, folder in choice.folders().items()}
    results = evaluate(tables, cache, choice.split, read_heldout(choice), curves, read_baseline(choice))
    notes, mistakes, samples = caveats(results), choose_mistakes(results), choose_samples(results)
    shown = [each.video for each in (*samples, *mistakes)]
    with done_so_far(lambda: "the report is as it was before"):
        frames, frames_note = sample_frames(workspace, choice.dataset, shown)
    extras = Extras(
        mistakes=mistakes,
        samples=samples,
        frames=frames,
        frames_note=frames_note,
        timing=read_timing(timing_file(workspace, choice.dataset)),
        sweeps=read_tables(
            workspace,
            choice.dataset,
            notes,
            choice.split,
            results.runs["high"].get("cache_digest"),
            subset=cache.dataset.subset is not None,
        ),
    )
    page = publish(workspace.report(choice.dataset, choice.split), results, notes, made_now(), extras)
    click.echo(to_text(table_3(results, notes, short=True)))
    _echo("; ".join(f"{model}: {TITLES[model]}" for model in results.models if model not in LEVELS))
    click.echo()
    _echo(f"fused against the high level alone: {results.against('high').text}")
    _say_certainty(choice, results)
    if several := mean_over_splits(choice):
        click.echo(f"\n{several}")
    click.echo(f"\nreport: {page}")
    say_next(advised("predict", workspace, dataset=choice.dataset, video="clip.mp4"), "fuse", "demo", "reproduce")
    return page


def _echo(text: str) -> None:
    click.echo(wrapped(text, "  "))


def _say_certainty(choice: RunChoice, results: "Results") -> None:
    """Print what the probabilities are worth, and what to do where they are not calibrated, with its price."""
    _echo(f"probabilities: {results.certainty}")
    if results.calibration is None:
        seconds = sum(epoch.seconds for folder in choice.folders().values() for epoch in read_curve(folder))
        price = f" in about {0.8 * seconds:,.0f} s" if seconds else ""
        command = shlex.join(["mrrn", "train", *choice.options(), "--holdout"])
        click.echo(f"  `make fuse` with CALIBRATE=1 trains such runs{price}, or:\n  {command}")


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
        from fuse.doctor import OTHERS, examine, portions, with_black
        from fuse.report.findings import LIST, PAGE, publish, shown, to_text
        from fuse.report.samples import sample_frames
        from fuse.results import evaluate, made_now

        diagnosis, weights = examine(cache, choice.split), str(cache.fingerprint.identity.get("weights"))
    frames, frames_note = sample_frames(choice.workspace, choice.dataset, shown(diagnosis))
    diagnosis, parts, note = with_black(diagnosis, frames), [], ""
    try:
        cached = read_scored_cache(choice.workspace, choice.dataset)
        parts = portions(evaluate(read_levels(choice), cached, choice.split), diagnosis)
        note = "" if parts[-1].name == OTHERS else f"There is a finding about every test {cached.dataset.noun[:-1]}."
    except (CacheError, ScoreError, TrainingError) as error:
        why = str(error).splitlines()[0].partition(";")[0]
        note = f"With trained heads this would say what the findings do to their accuracy. There are none: {why}."
    folder = choice.workspace.report(choice.dataset, choice.split)
    notes = [each for each in (note, frames_note) if each]
    if is_untrained(weights):
        notes.insert(0, f"The backbone was never trained ({weights}): what looks alike to it need not be alike.")
    publish(folder, diagnosis, parts, notes, frames, made_now())
    click.echo(f"{to_text(diagnosis, parts, notes)}\n\npage: {folder / PAGE}\nlist: {folder / LIST}")
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
    from fuse.results import made_now

    name = choose_dataset(workspace, dataset)
    found = side_by_side(runs, workspace, name, split)
    first, *others = found.runs
    for run in found.runs:
        say(f"{visible(run.name)}: {accuracy_text(int(run.correct.sum()), len(run.correct))}")
    for run in others:
        _echo(f"{visible(run.name)} against {visible(first.name)}: {found.against_first(run).text}")
    for line in found.settings_that_differ():
        _echo(f"  {visible(line)}")
    page = workspace.report(name, split) / "compare.html"
    frames, frames_note = sample_frames(workspace, name, shown_videos(found))
    write_bytes_durably(page, comparison_page(found, made_now(), frames, frames_note).encode())
    click.echo(f"\npage: {page}")
    if show:
        _open(page)


@main.command()
@click.argument("videos", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="VIDEO...")
@run_options
@click.option("--bundle", type=click.Path(path_type=Path), help="Use the heads of this bundle instead of trained runs.")
@click.option("--weights", help="The backbone's weights, if they are no longer where extraction had them.")
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
    files = _find_files(videos) if follow is None else [_growing(videos[0])]
    check_device(device)
    check_weights(weights or IMAGENET)
    choice = _chosen(choose, bundle, clips)
    if shape == "vtt" and len(files) > 1:
        raise click.UsageError(f"--format vtt writes one file of subtitles; {len(files)} videos were given")
    from extract.network.engine import open_engine
    from fuse.predict import backbone_weights, settings_for
    from fuse.predict import predict as run

    heads, spec = _heads(choice, bundle, weights, clips)
    settings = settings_for(heads, weights=spec, device=device, jobs=jobs)
    engine = open_engine(settings, backbone_weights(heads, settings))
    if as_timeline:
        _show_timelines(heads, settings, engine, files, shape, follow)
    else:
        _answer(run(files, heads, settings, engine), heads, files, shape == "json")


@main.command()
@run_options
@click.option("--bundle", type=click.Path(path_type=Path), help="Use the heads of this bundle instead of trained runs.")
@click.option("--weights", help="The backbone's weights, if they are no longer where extraction had them.")
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
    choice = _chosen(choose, bundle)
    from fuse.export import to_onnx
    from fuse.predict import backbone_weights, settings_for

    heads, spec = _heads(choice, bundle, weights)
    settings = settings_for(heads, weights=spec, device="cpu", jobs=1)
    say(f"{settings.backbone} and its heads become one ONNX graph: a minute or so")
    write_bytes_durably(out, to_onnx(heads, settings, backbone_weights(heads, settings)))
    say(f"{settings.backbone}, three heads and their fusion, {len(heads.classes)} classes: {out}")


def _chosen(choose: Choose, bundle: Path | None, clips: str | None = None) -> RunChoice | None:
    """The runs that are chosen if there is no bundle."""
    if bundle is None:
        return choose(clips)
    if not bundle.is_dir():
        raise MrrnError(f"there is no folder {bundle}; --bundle takes one that `mrrn bundle` has written")
    return None


def _heads(
    choice: RunChoice | None, bundle: Path | None, weights: str | None, clips: str | None = None
) -> "tuple[Heads, str]":
    """The heads of a bundle, or else of the chosen runs, and the backbone's weights that go with them."""
    from fuse.bundle import read_bundle
    from fuse.calibration import calibrate
    from fuse.predict import check_not_imported, load_heads, weights_for

    if choice is None:
        assert bundle is not None
        heads, recorded = load_heads(*read_bundle(bundle), clips), None
    else:
        with FeatureCache.open(choice.workspace.cache(choice.dataset)) as cache:
            check_not_imported(cache.fingerprint.identity)
            recorded = cache.settings.get("weights")
        choice = choice.of_new_videos()
        heldout = read_heldout(choice)
        calibration = calibrate(heldout.levels, heldout.labels, PAPER_WEIGHTS) if heldout else None
        heads = load_heads(choice.folders(), calibration=calibration, clips=clips)
    return heads, weights_for(heads, weights, recorded)


def _find_files(given: Iterable[Path]) -> list[Path]:
    """The files given, and the video files below the folders given. Raises `MrrnError` naming what does not exist."""
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            root = require_folder(path, "give a video file or a folder of them")
            scan = scan_folder(root)
            for line in scan.passed_over_text():
                say(f"{path}: {line}", err=True)
            inside = [path / name for name in scan.videos]
            if not inside:
                raise MrrnError(f"the folder {path} holds no video files")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise MrrnError(f"there is no file or folder {path}; give videos with VIDEO= or as arguments")
    if all(map(_is_text, found)):
        raise DecodeError(f"no video could be predicted: {found[0]}: it holds text, or nothing, and is no video")
    return list(dict.fromkeys(found))


def _is_text(path: Path) -> bool:
    """Whether the file begins as no video does: with nothing, or with UTF-8 without control characters."""
    try:
        with path.open("rb") as file:
            begin = file.read(4096)
        text = begin.decode("utf-8", errors="strict" if len(begin) < 4096 else "ignore")
    except (OSError, UnicodeDecodeError):
        return False
    return len(text.encode()) > len(begin) - 4 and all(each.isprintable() or each.isspace() for each in text)


def _growing(path: Path) -> Path:
    """The file or pipe to follow, by a name that other processes can open. Raises `MrrnError` if there is none."""
    path = Path("/dev/fd/0") if str(path) == "-" else path
    if not path.exists() or path.is_dir():
        raise MrrnError(f"there is no file or pipe {path} to follow; give one, or - for what is piped in")
    return Path(os.path.realpath(path.parent), path.name)  # not /proc/self


def _answer(predictions: "Iterator[Prediction]", heads: "Heads", files: list[Path], as_json: bool) -> None:
    """Print predictions as they come (JSON: all at the end, in the order asked for) and set the exit code."""
    from fuse.predict import to_json, to_text
    from fuse.results import weights_caveats

    notes = weights_caveats(heads.identity)
    done: list[Prediction] = []
    if not as_json:
        for note in notes:
            _echo(f"! {note}")
    predicted = done_so_far(lambda: f"{len(done):,} of {len(files):,} videos were predicted")
    with predicted, progress("predict", len(files), "videos") as bar:
        for prediction in predictions:
            done.append(prediction)
            bar.update(len(done))
            if not as_json:
                click.echo(to_text(prediction, heads.classes))
    if as_json:
        order = {str(path): index for index, path in enumerate(files)}
        done.sort(key=lambda prediction: order[prediction.video])
        answers = [to_json(prediction, heads.classes) for prediction in done]
        # ASCII, so that no encoding of the output changes a name.
        calibration = heads.calibration and asdict(heads.calibration)
        click.echo(json.dumps({"notes": notes, "calibration": calibration, "predictions": answers}, indent=2))
    failed = [prediction for prediction in done if prediction.fused is None]
    if len(failed) == len(done):
        raise DecodeError(f"no video could be predicted: {failed[0].video}: {failed[0].reason}")
    if failed:
        say(f"{len(failed)} of {len(done)} videos could not be predicted", err=True)
        sys.exit(FINISHED_WITH_FAILURES)


def _show_timelines(
    heads: "Heads",
    settings: "ExtractSettings",
    engine: "Engine",
    files: list[Path],
    shape: "Shape",
    follow_seconds: float | None,
) -> None:
    """Print the timeline of each video as it is computed, and set the exit code."""
    from extract.decode import DEFAULT_DECODER, DecodePool
    from extract.pipeline import decode_settings
    from fuse.results import weights_caveats
    from fuse.timeline import TimelineEnd, Writer, timeline

    if follow_seconds is not None and settings.decoder != DEFAULT_DECODER:
        raise MrrnError(f"--follow decodes by {DEFAULT_DECODER}; these heads' features were made by {settings.decoder}")
    plain = False if "NO_COLOR" in os.environ else None
    writer = Writer(shape, heads.classes, style=lambda text, colour: click.style(text, fg="black", bg=colour))
    notes, failed = weights_caveats(heads.identity), []
    for note in notes if shape == "csv" else ():
        say(f"! {note}", err=True)

    def noting_failures(events: "Iterator[Event]") -> "Iterator[Event]":
        for event in events:
            if isinstance(event, TimelineEnd) and event.outcome.status == "failed":
                failed.append(event.outcome)
            yield event

    for line in writer.head(notes):
        click.echo(line, color=plain)
    with DecodePool(decode_settings(settings)) as pool:
        for path in files:
            events = timeline(path, heads, settings, engine, pool, follow_seconds)
            name = "-" if path.match("/proc/*/fd/*") else str(path)
            for line in writer.lines(name, noting_failures(events)):
                click.echo(line, color=plain)
    if failed and len(failed) == len(files):
        raise DecodeError(f"no video could be read to its end: {failed[0].video_id}: {failed[0].reason}")
    if failed:
        say(f"{len(failed)} of {len(files)} videos could not be read to their end", err=True)
        sys.exit(FINISHED_WITH_FAILURES)


@main.command()
@run_options
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write. [default: WORK/bundles/DATASET-splitN]")
@clips_option
def bundle(choose: Choose, out: Path | None, clips: str | None) -> None:
    """Copy the three trained heads into one folder to hand to somebody else: safetensors, JSON and a model card.

    The recipient predicts with `mrrn predict --bundle FOLDER`, without the cache or the videos.
    """
    choice = choose(clips).of_new_videos()
    from fuse.bundle import write_bundle
    from fuse.predict import load_heads
    from fuse.results import caveats, evaluate, made_now, summarise

    cache = read_scored_cache(choice.workspace, choice.dataset)
    results = evaluate(read_levels(choice), cache, choice.split, read_heldout(choice), baseline=read_baseline(choice))
    heads = load_heads(choice.folders(), clips=clips)  # raises unless the bundle can be used
    out = out or choice.workspace.root / "bundles" / f"{choice.dataset}-split{choice.split}"
    write_bundle(out, choice.folders(), summarise(results, caveats(results), made_now()), heads.clips)
    _say_certainty(choice, results)
    click.echo(f"bundle: {out}")
    weights = cache.settings.get("weights") or heads.identity["weights"]
    file = ["--weights", str(weights)] if is_file_spec(str(heads.identity["weights"])) else []
    say_next(shlex.join(["mrrn", "predict", "--bundle", str(out), *file, "clip.mp4"]))
