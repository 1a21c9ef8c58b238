"""Sample predictions, right and wrong, with a few frames of each video: the paper's Figure 3.

Shapes: F frames, H and W their height and width in pixels.
"""

import base64
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from cache.aggregate import NO_PREDICTION, predicted
from cache.common.errors import MrrnError
from cache.common.workspace import Workspace
from cache.store import FeatureCache
from extract.datasets import load_dataset
from extract.decode import DecodePool, DecodeSettings, VideoEnd
from fuse.metrics import ranked
from fuse.report.figures import Files, Theme, label, new_figure, render_themes
from fuse.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

EACH: Final = 4
"""Right predictions shown, and as many wrong ones."""

FRAMES: Final = 3
"""Frames shown of a video."""

SAMPLED_FPS: Final = 4.0
"""Frames a second that are decoded to choose these from."""

WIDTH: Final = 200
"""Pixels of a frame's longer side in the page."""

KEPT_WIDTH: Final = 640
"""Pixels of the longer side of the frames that are kept: as large as the figure shows one."""

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
    probabilities = results.probabilities["fused"]
    scored = predicted(probabilities) != NO_PREDICTION
    order = np.random.default_rng(0).permutation(len(results.video_ids)).tolist()
    samples = []
    for wanted in (True, False):
        seen: Counter[int] = Counter()
        turns = []
        for index in (index for index in order if scored[index] and results.correct["fused"][index] == wanted):
            truth = int(results.labels[index])
            turns.append((seen[truth], index, truth))
            seen[truth] += 1
        # First one video of each class, then a second one of each.
        for _, index, truth in sorted(turns, key=lambda turn: turn[0])[:EACH]:
            classes = ranked(probabilities[index])
            if truth not in classes:
                classes[-1] = truth
            top = tuple((number, float(probabilities[index, number])) for number in classes)
            samples.append(ShownPrediction(results.video_ids[index], truth, top))
    return samples


def sample_frames(workspace: Workspace, dataset: str, video_ids: Sequence[str]) -> dict[str, NDArray[np.uint8]]:
    """FRAMES evenly spread frames of each video `[F, H, W, 3]`, if its file is still where extraction had it.

    Videos that are gone or cannot be decoded are left out: results rest on the features, not on the files.
    """
    with FeatureCache.open(workspace.cache(dataset)) as cache:
        data, source = cache.settings.get("data"), cache.dataset.source
        path_of = {video.id: video.path for video in cache.dataset.videos}
        wanted = {sample.id: sample for sample in cache.dataset.samples if sample.id in set(video_ids)}
    try:
        where = Path(data) if data else None
        _, root = load_dataset(dataset, where, subset=True, work=workspace.root, source=source)
    except MrrnError:
        return {}
    found = {each: root / path_of[sample.video] for each, sample in wanted.items()}
    paths = {each: path for each, path in found.items() if path.is_file()}
    kept: dict[str, list[NDArray[np.uint8]]] = {}
    with DecodePool(DecodeSettings(workers=1, fps=SAMPLED_FPS, blocks_ahead=2)) as pool:
        # Decoded twice: where the frames are is known at a video's end, and a long video's frames fill the memory.
        counts = {}
        for item in pool.decode(paths.items()):
            if isinstance(item, VideoEnd):
                counts[item.outcome.video_id] = item.outcome.num_frames
            else:
                item.release()
        places = {each: _places(count, wanted[each].span) for each, count in counts.items() if count}
        for item in pool.decode((video, paths[video]) for video in places):
            if isinstance(item, VideoEnd):
                if item.outcome.num_frames != counts[item.outcome.video_id]:  # the file has changed meanwhile
                    kept.pop(item.outcome.video_id, None)
                continue
            for place in places[item.video_id] - item.first_frame:
                if 0 <= place < len(item.frames_FHW3):
                    picture = _picture(item.frames_FHW3[place], KEPT_WIDTH)
                    kept.setdefault(item.video_id, []).append(np.asarray(picture))
            item.release()
    return {video: np.stack(frames) for video, frames in kept.items()}


def _places(count: int, span: tuple[float, float] | None) -> NDArray[np.int64]:
    """FRAMES evenly spread ones of `count` frames at SAMPLED_FPS, in a span if one is given."""
    first, stop = (min(int(seconds * SAMPLED_FPS), count - 1) for seconds in span or (0.0, float(count)))
    return np.linspace(first, stop, FRAMES + 2)[1:-1].round().astype(np.int64)


def _picture(frame_HW3: NDArray[np.uint8], width: int) -> "Image.Image":
    """The frame as a picture of its own, whose longer side has `width` pixels at most."""
    from PIL import Image

    picture = Image.fromarray(frame_HW3)
    picture.thumbnail((width, width))
    return picture


def data_uris(frames: Frames) -> dict[str, list[Markup]]:
    """The frames as JPEG pictures that stand in the page itself."""
    return {video: [_data_uri(frame) for frame in frames_FHW3] for video, frames_FHW3 in frames.items()}


def _data_uri(frame_HW3: NDArray[np.uint8]) -> Markup:
    out = io.BytesIO()
    _picture(frame_HW3, WIDTH).save(out, "JPEG", quality=80)
    return Markup("data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode())


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
