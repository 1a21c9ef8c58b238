"""Predictions that are shown with a few frames of their video: the mistakes, and the paper's Figure 3.

Shapes: F frames, H and W their height and width in pixels.
"""

import base64
import io
import math
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from cache.aggregate import NO_PREDICTION, predicted
from cache.common.errors import MrrnError
from cache.common.progress import progress
from cache.common.workspace import Workspace
from cache.fingerprint import LEVELS, Level
from cache.store import FeatureCache
from extract.datasets import load_dataset
from extract.decode import DecodePool, DecodeSettings, VideoEnd
from fuse.metrics import ranked
from fuse.report.figures import Files, Theme, label, new_figure, render_themes
from fuse.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EACH: Final = 4
"""Right predictions shown, and as many wrong ones."""

MISTAKES: Final = 48
"""Most confident mistakes shown at most; to these come the PAIRED most confident ones of each of the PAIRS."""

PAIRS: Final = 20
"""Confusions listed, the most frequent first."""

PAIRED: Final = 2

FRAMES: Final = 8
"""Frames shown of a video, in COLUMNS."""

COLUMNS: Final = 4

DECODE_SECONDS: Final = 120.0
"""Time after which no further video is decoded for its frames; the most important ones come first."""

WORKERS: Final = 4
"""Videos decoded at once at most."""

SAMPLED_FPS: Final = 8.0
"""Frames a second that are decoded to choose these from."""

STRIP_HEIGHT: Final = 54
"""Pixels of a frame's height in a strip, all frames beside one another."""

STRIP_WIDTH: Final = 8192
"""Pixels that a strip is wide at most: WebP has at most 16,383, which very wide videos would exceed."""

KEPT_WIDTH: Final = 208
"""Pixels of the longer side of the frames that are kept, and shown as a sheet."""

Frames = Mapping[str, NDArray[np.uint8]]
"""Video id -> a few of its frames `[F, H, W, 3]`; without videos that cannot be read."""


@dataclass(frozen=True)
class ShownPrediction:
    """One test sample and the fused model's prediction for it."""

    video: str
    """Id of the sample."""
    label: int
    top: tuple[tuple[int, float], ...]
    """The most probable classes with their probabilities; the true one last if it is not among them."""
    votes: Mapping[Level, tuple[int, float]]
    """Each level's first choice and its probability."""

    @property
    def right(self) -> bool:
        """Whether the first choice is the true class."""
        return self.top[0][0] == self.label

    def kind(self, number: int) -> str:
        """How a class's bar is marked: `right` (true class, chosen), `truth` (true class, not chosen) or `wrong`."""
        if number == self.label:
            return "right" if self.right else "truth"
        return "wrong"


def choose_samples(results: Results) -> list[ShownPrediction]:
    """Up to EACH right and EACH wrong predictions drawn at random, of different classes as far as there are."""
    scored = predicted(results.probabilities["fused"]) != NO_PREDICTION
    order = np.random.default_rng(0).permutation(len(results.video_ids)).tolist()
    samples = []
    for wanted in (True, False):
        seen: Counter[int] = Counter()
        turns = []
        for index in (index for index in order if scored[index] and results.correct["fused"][index] == wanted):
            truth = int(results.labels[index])
            turns.append((seen[truth], index))
            seen[truth] += 1
        # First one video of each class, then a second one of each.
        samples += [_shown(results, index) for _, index in sorted(turns, key=lambda turn: turn[0])[:EACH]]
    return samples


def choose_mistakes(results: Results) -> list[ShownPrediction]:
    """Wrong predictions, the most confident first: MISTAKES of all, and PAIRED of each of the PAIRS."""
    choice = predicted(results.probabilities["fused"])
    order = np.argsort(-results.probabilities["fused"].max(axis=1), kind="stable")
    wrong = [int(each) for each in order if not results.correct["fused"][each] and choice[each] != NO_PREDICTION]
    often = Counter((int(results.labels[each]), int(choice[each])) for each in wrong)
    listed, shown = dict(often.most_common(PAIRS)), []
    seen: Counter[tuple[int, int]] = Counter()
    for place, each in enumerate(wrong):
        pair = (int(results.labels[each]), int(choice[each]))
        if place < MISTAKES or (pair in listed and seen[pair] < PAIRED):
            shown.append(_shown(results, each))
        seen[pair] += 1
    return shown


def _shown(results: Results, index: int) -> ShownPrediction:
    probabilities, truth = results.probabilities["fused"][index], int(results.labels[index])
    classes = ranked(probabilities)
    if truth not in classes:
        classes[-1] = truth
    votes = {level: results.probabilities[level][index] for level in LEVELS}
    return ShownPrediction(
        results.video_ids[index],
        truth,
        tuple((number, float(probabilities[number])) for number in classes),
        {level: (int(each.argmax()), float(each.max())) for level, each in votes.items()},
    )


def sample_frames(workspace: Workspace, dataset: str, video_ids: Sequence[str]) -> tuple[Frames, str]:
    """FRAMES evenly spread frames of each video, if its file is still where extraction had it; and why some have none.

    Of a video that was not extracted to its end only the part that was. Videos that are gone or cannot be decoded are
    left out, and those that come after DECODE_SECONDS: results rest on the features, not on the files.
    """
    asked = len(set(video_ids))
    with FeatureCache.open(workspace.cache(dataset)) as cache:
        data, source, imported = cache.settings.get("data"), cache.dataset.source, cache.imported
        path_of = {video.id: video.path for video in cache.dataset.videos}
        known = {sample.id: sample for sample in cache.dataset.samples}
        wanted = {each: known[each] for each in video_ids if each in known}
        spans = {each: sample.span for each, sample in wanted.items()}
        if cache.fingerprint.identity.get("max_frames"):
            extracted = [sample for sample in wanted.values() if cache.frames_of(sample) and not sample.span]
            spans |= {sample.id: (0.0, float(cache.pts_seconds(sample.video)[-1])) for sample in extracted}
    try:
        where = Path(data) if data else None
        _, root = load_dataset(dataset, where, subset=True, work=workspace.root, source=source)
    except MrrnError as error:
        if imported:
            return {}, "There are no frames: the features were imported, and their list names no videos that are here."
        return {}, f"There are no frames, because the videos are not found: {error}."
    paths = {each: root / path_of[sample.video] for each, sample in wanted.items()}
    paths = {each: path for each, path in paths.items() if path.is_file()}
    kept: dict[str, NDArray[np.uint8]] = {}
    started, workers, late = time.monotonic(), min(WORKERS, len(os.sched_getaffinity(0))), 0
    settings = DecodeSettings(workers=workers, fps=SAMPLED_FPS, blocks_ahead=2)
    with DecodePool(settings) as pool, progress("pictures", len(paths), "videos") as shown:
        for first in range(0, len(paths), 2 * workers):
            shown.update(first)
            if time.monotonic() - started > DECODE_SECONDS:
                late = len(paths) - first
                break
            kept |= _frames(pool, dict(list(paths.items())[first : first + 2 * workers]), spans)
    reasons = {
        f"whose files are {'not' if imported else 'no longer'} there": asked - len(paths),
        "that cannot be decoded": len(paths) - late - len(kept),
        f"that were not reached in the {DECODE_SECONDS:.0f} s that decoding may take": late,
    }
    said = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items() if count)
    return kept, f"Without frames: {said}." if said else ""


def _frames(
    pool: DecodePool, paths: Mapping[str, Path], spans: Mapping[str, tuple[float, float] | None]
) -> dict[str, NDArray[np.uint8]]:
    """Decoded twice: where the frames are is known at a video's end, and a long video's frames fill the memory."""
    counts = {}
    for item in pool.decode(paths.items()):
        if isinstance(item, VideoEnd):
            counts[item.outcome.video_id] = item.outcome.num_frames
        else:
            item.release()
    places = {each: _places(count, spans[each]) for each, count in counts.items() if count}
    kept: dict[str, list[NDArray[np.uint8]]] = {}
    for item in pool.decode((video, paths[video]) for video in places):
        if isinstance(item, VideoEnd):
            if item.outcome.num_frames != counts[item.outcome.video_id]:  # the file has changed meanwhile
                kept.pop(item.outcome.video_id, None)
            continue
        for place in places[item.video_id] - item.first_frame:
            if 0 <= place < len(item.frames_FHW3):
                picture = Image.fromarray(item.frames_FHW3[place])
                picture.thumbnail((KEPT_WIDTH, KEPT_WIDTH))
                kept.setdefault(item.video_id, []).append(np.asarray(picture))
        item.release()
    return {video: np.stack(frames) for video, frames in kept.items()}


def _places(count: int, span: tuple[float, float] | None) -> NDArray[np.int64]:
    """FRAMES evenly spread ones of `count` frames at SAMPLED_FPS, in a span if one is given."""
    first, stop = (min(int(seconds * SAMPLED_FPS), count - 1) for seconds in span or (0.0, float(count)))
    return np.linspace(first, stop, FRAMES + 2)[1:-1].round().astype(np.int64)


@dataclass(frozen=True)
class Pictures:
    """A video's frames as WebP pictures (0.7 of JPEG's bytes) in the page itself, with their sizes in pixels."""

    strip: Markup
    """All frames beside one another, small."""
    strip_size: tuple[int, int]
    sheet: Markup
    """The frames in rows of COLUMNS."""
    sheet_size: tuple[int, int]


def pictures_of(frames_FHW3: NDArray[np.uint8]) -> Pictures:
    """A strip and a sheet of a video's frames."""
    strip = Image.fromarray(np.hstack(list(frames_FHW3)))
    scale = min(STRIP_HEIGHT / strip.height, STRIP_WIDTH / strip.width)
    strip = strip.resize((max(1, round(strip.width * scale)), max(1, round(strip.height * scale))))
    rows = [np.hstack(list(frames_FHW3[start : start + COLUMNS])) for start in range(0, len(frames_FHW3), COLUMNS)]
    rows = [np.pad(row, ((0, 0), (0, rows[0].shape[1] - row.shape[1]), (0, 0))) for row in rows]
    sheet = Image.fromarray(np.vstack(rows))
    return Pictures(_data_uri(strip), strip.size, _data_uri(sheet), sheet.size)


def _data_uri(picture: Image.Image) -> Markup:
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=50)
    return Markup("data:image/webp;base64," + base64.b64encode(out.getvalue()).decode())


def draw_samples(results: Results, samples: Sequence[ShownPrediction], frames: Frames, notes: Sequence[str]) -> Files:
    """Figure 3: for each sample a frame above the bars of its most probable classes, right predictions first."""
    columns = min(EACH, len(samples))
    rows = math.ceil(len(samples) / columns)

    def draw(theme: Theme) -> "Figure":
        figure = new_figure(3.2 * columns, 3.4 * rows, f"Sample predictions, {label(results.dataset)}", notes)
        grid = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[1.4, 1] * rows)
        for axes in grid.flat:
            axes.set_axis_off()
        for number, sample in enumerate(samples):
            row, column = divmod(number, columns)
            picture, bars = grid[2 * row][column], grid[2 * row + 1][column]
            found = frames.get(sample.video)
            if found is not None:
                picture.imshow(found[len(found) // 2])
            verdict = "✓" if sample.right else "✗"
            picture.set_title(f"{verdict} {label(results.classes[sample.label])}", fontsize=9)
            _draw_bars(bars, sample, results.classes, theme)
        return figure

    return render_themes("samples", draw)


def _draw_bars(axes: "Axes", sample: ShownPrediction, classes: Sequence[str], theme: Theme) -> None:
    for place, (number, share) in enumerate(sample.top):
        axes.barh(place, share, color=getattr(theme, sample.kind(number)), height=0.75, alpha=0.6)
        axes.text(0.01, place, f"{label(classes[number], 24)}  {share:.0%}", va="center", fontsize=7)
    axes.set_xlim(0, 1)
    axes.set_ylim(len(sample.top) - 0.4, -0.6)
