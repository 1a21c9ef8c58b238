"""Sample predictions, right and wrong, with a few frames of each video (Figure 3)."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from cache.aggregate import NO_PREDICTION, predicted
from cache.common.text import visible
from fuse.predict import ranked
from fuse.report.figures import Files, Theme, label, new_figure, render_themes
from fuse.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EACH: Final = 4
"""Right and wrong predictions shown."""

FRAMES: Final = 3
"""Frames shown of a video."""

WIDTH: Final = 200
"""Pixels of a frame's longer side in the page."""

Frames = Mapping[str, NDArray[np.uint8]]
"""Video id -> a few of its frames [F, H, W, 3]; without those that cannot be read."""


@dataclass(frozen=True)
class Sample:
    """One test video and what the fused model says of it."""

    video: str
    label: int
    top: tuple[tuple[int, float], ...]
    """The most probable classes with their probabilities; the true one last where it is not among them."""

    @property
    def right(self) -> bool:
        """Whether the first choice is the true class."""
        return self.top[0][0] == self.label


def choose(results: Results, *, each: int = EACH, seed: int = 0) -> list[Sample]:
    """Up to `each` right and `each` wrong predictions drawn at random, of different classes as far as there are."""
    probabilities = results.probabilities["fused"]
    scored = predicted(probabilities) != NO_PREDICTION
    order = np.random.default_rng(seed).permutation(len(results.video_ids))
    chosen = []
    for wanted in (True, False):
        fitting = [int(index) for index in order if scored[index] and results.correct["fused"][index] == wanted]
        seen: dict[int, int] = {}
        turns = []
        for index in fitting:
            turns.append((seen.setdefault(int(results.labels[index]), 0), index))
            seen[int(results.labels[index])] += 1
        chosen += [index for _, index in sorted(turns, key=lambda turn: turn[0])[:each]]
    return [_sample(results, index) for index in chosen]


def _sample(results: Results, index: int) -> Sample:
    probabilities, truth = results.probabilities["fused"][index], int(results.labels[index])
    classes = ranked(probabilities)
    if truth not in classes:
        classes = [*classes[:-1], truth]
    return Sample(results.video_ids[index], truth, tuple((number, float(probabilities[number])) for number in classes))


def for_page(samples: Sequence[Sample], frames: Frames, classes: Sequence[str]) -> list[dict[str, Any]]:
    """The samples as the template needs them, frames as data URIs."""
    return [
        {
            "video": visible(sample.video),
            "truth": visible(classes[sample.label]),
            "right": sample.right,
            "frames": [_data_uri(frame) for frame in frames.get(sample.video, ())],
            "top": [
                {"name": visible(classes[number]), "share": share, "kind": kind_of(sample, number)}
                for number, share in sample.top
            ],
        }
        for sample in samples
    ]


def kind_of(sample: Sample, number: int) -> str:
    """How a bar is marked: the right first choice, the true class that was not chosen, or another class."""
    if number == sample.label:
        return "right" if sample.right else "truth"
    return "wrong"


def _data_uri(frame_HW3: NDArray[np.uint8]) -> str:
    from PIL import Image

    picture = Image.fromarray(frame_HW3)
    picture.thumbnail((WIDTH, WIDTH))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def draw_samples(results: Results, samples: Sequence[Sample], frames: Frames, notes: Sequence[str]) -> Files:
    """Figure 3: for each sample a frame over its five bars, the right ones first."""
    columns = max(1, min(EACH, len(samples)))
    rows = max(1, -(-len(samples) // columns))

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


def _draw_bars(axes: "Axes", sample: Sample, classes: Sequence[str], theme: Theme) -> None:
    colours = {"right": theme.right, "wrong": theme.wrong, "truth": theme.truth}
    for place, (number, share) in enumerate(sample.top):
        axes.barh(place, share, color=colours[kind_of(sample, number)], height=0.75, alpha=0.6)
        axes.text(0.01, place, f"{label(classes[number], 24)}  {share:.0%}", va="center", fontsize=7)
    axes.set_xlim(0, 1)
    axes.set_ylim(len(sample.top) - 0.4, -0.6)
