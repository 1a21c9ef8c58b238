"""The paper's figures of one split, from its results."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cache.schema import LEVELS
from fuse.results import Results
from fuse.themes import Files, Theme, label, new_figure, render_themes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NUMBERED = 20
"""Classes up to which the confusion matrix has its counts written in."""


def title_of(results: Results) -> str:
    """Dataset, split and pooling, as every figure's heading has them."""
    return f"{label(results.dataset)}, split {results.split}, {results.pool} pooling"


def draw_confusion(results: Results, notes: Sequence[str]) -> Files:
    """Figure 5: rows = true class, columns = predicted class, strength = share of the true class's videos."""
    classes = len(results.classes)
    counts = results.confusion()
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)[:, :classes]
    names = [label(name) for name in results.classes]

    def draw(theme: Theme) -> "Figure":
        side = min(max(3.2, 0.15 * classes), 16.0)
        figure = new_figure(side + 2, side + 2, f"Confusion, {title_of(results)}", notes)
        axes = figure.add_subplot()
        axes.imshow(_coloured(shares, theme), interpolation="none")
        size = 9 if classes <= _NUMBERED else 6
        axes.set_xticks(range(classes), names, rotation=90, fontsize=size)
        axes.set_yticks(range(classes), names, fontsize=size)
        axes.tick_params(length=0)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        if classes <= _NUMBERED:
            _write_counts(axes, counts[:, :classes], shares, theme)
        return figure

    return render_themes("confusion", draw)


def _coloured(shares_KK: NDArray[np.float64], theme: Theme) -> NDArray[np.float64]:
    """RGB `[K, K, 3]`: from the paper's colour to that of right (diagonal) or wrong, by share."""
    from matplotlib.colors import to_rgb

    paper, right, wrong = (np.array(to_rgb(colour)) for colour in (theme.paper, theme.right, theme.wrong))
    full = np.where(np.eye(len(shares_KK), dtype=bool)[..., None], right, wrong)
    # The root lifts the few percent that most confusions are above the paper's colour.
    strength = np.sqrt(shares_KK)[..., None]
    return paper + strength * (full - paper)


def _write_counts(axes: "Axes", counts: NDArray[np.int64], shares: NDArray[np.float64], theme: Theme) -> None:
    for row, column in np.argwhere(counts).tolist():
        colour = theme.paper if shares[row, column] > 0.3 else theme.ink
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=9)


def draw_per_class(results: Results, notes: Sequence[str]) -> Files:
    """Figure 4: accuracy of each class at each level, classes sorted by the high level's."""
    shares = {level: np.nan_to_num(results.per_class(level)) * 100 for level in LEVELS}
    order = np.argsort(-shares["high"], kind="stable")
    names = [label(results.classes[index]) for index in order]

    def draw(theme: Theme) -> "Figure":
        figure = new_figure(8, 1.6 + 0.3 * len(names), f"Accuracy per class, {title_of(results)}", notes)
        axes = figure.add_subplot()
        places = np.arange(len(names))
        for offset, level in zip((-0.27, 0, 0.27), LEVELS, strict=True):
            bars: Any = {"height": 0.26, "color": getattr(theme, level), "label": level}
            axes.barh(places + offset, shares[level][order], **bars)
        axes.set_yticks(places, names, fontsize=8)
        axes.set_xlim(0, 100)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlabel("accuracy, % of the class's test videos")
        axes.grid(axis="x", color=theme.faint, linewidth=0.6)
        axes.set_axisbelow(True)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower right", ncols=3, frameon=False, fontsize=8)
        return figure

    return render_themes("per_class", draw)
