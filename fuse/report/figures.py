"""Figures as files, SVG and PNG, light and dark: how all of them look, and the paper's Figures 4 and 5.

Drawn by matplotlib without a display. Colours are Okabe and Ito's, told apart with any colour vision; where it matters,
marks and places differ too. Figures 3 and 6 stand in samples.py and timing.py.
"""

import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from cache.common.text import shortened, visible
from cache.fingerprint import LEVELS
from fuse.results import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Files = dict[str, bytes]
"""Names and contents of files."""

LABEL_LENGTH: Final = 28
"""Characters of a name in a figure; tables have it whole."""

NUMBERED: Final = 20
"""Classes up to which the confusion matrix has its counts written in."""

_PIXELS: Final = 2400
"""Longest side of a PNG; small figures have 200 pixels an inch."""


@dataclass(frozen=True)
class Theme:
    """Colours of the light or the dark version of all figures."""

    suffix: str
    """Added to file names."""
    background: str
    ink: str
    """Text and axes."""
    faint: str
    """Grid lines."""
    low: str
    mid: str
    high: str
    right: str
    """Correct predictions, at full strength."""
    wrong: str
    truth: str
    """The true class where it was not chosen."""


LIGHT: Final = Theme(
    "", "#ffffff", "#1b1b1f", "#d5d5dc", "#e69f00", "#009e73", "#0072b2", "#0072b2", "#d55e00", "#9b5a86"
)
DARK: Final = Theme(
    "-dark", "#16181d", "#ececf1", "#3a3d46", "#f0b429", "#2bc79b", "#56b4e9", "#56b4e9", "#ff8a3d", "#cc9bbd"
)

_INKS: Final = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor")
_BACKGROUNDS: Final = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
_SETTINGS: Final[dict[Any, Any]] = {
    "svg.hashsalt": "mrrn",  # the same figure is the same bytes
    "text.parse_math": False,  # a `$` in a class name is a dollar
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def render_themes(name: str, draw: Callable[[Theme], "Figure"]) -> Files:
    """Files `name.svg`, `name.png` and their dark twins; `draw` makes the figure in a theme's colours."""
    import matplotlib as mpl

    files: Files = {}
    for theme in (LIGHT, DARK):
        colours: dict[Any, Any] = {**dict.fromkeys(_INKS, theme.ink), **dict.fromkeys(_BACKGROUNDS, theme.background)}
        with mpl.rc_context({**_SETTINGS, **colours}):
            figure = draw(theme)
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # laid out once, not again for each format
            dpi = min(200, _PIXELS / max(figure.get_size_inches()))
            for kind, metadata in (("svg", {"Date": None, "Creator": "mrrn"}), ("png", {"Software": "mrrn"})):
                out = io.BytesIO()
                figure.savefig(out, format=kind, metadata=metadata, dpi=dpi)
                files[f"{name}{theme.suffix}.{kind}"] = out.getvalue()
    return files


@cache
def _glyphs() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def drawable(text: str) -> str:
    """`text` as the figure's font can show it, on one line."""
    return "".join(character if ord(character) in _glyphs() else "□" for character in visible(text))


def label(name: str, length: int = LABEL_LENGTH) -> str:
    """A name as an axis has room for it."""
    return drawable(shortened(visible(name), length))


def new_figure(width: float, height: float, title: str, notes: Sequence[str]) -> "Figure":
    """An empty figure, `width` times `height` inches below its heading and the notes under that."""
    from matplotlib.figure import Figure

    lines = [line for note in notes for line in textwrap.wrap(drawable(note), int(width * 13))]
    figure = Figure(figsize=(width, height + 0.15 * len(lines)), layout="constrained")
    figure.suptitle("\n".join([title, *lines]), fontsize=9, x=0.01, ha="left")
    return figure


def title_of(results: Results) -> str:
    """Dataset, split and pooling, for a figure's heading."""
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
        size = 9 if classes <= NUMBERED else 6
        axes.set_xticks(range(classes), names, rotation=90, fontsize=size)
        axes.set_yticks(range(classes), names, fontsize=size)
        axes.tick_params(length=0)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        for row, column in np.argwhere(counts[:, :classes]).tolist() if classes <= NUMBERED else ():
            colour = theme.background if shares[row, column] > 0.3 else theme.ink
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=9)
        return figure

    return render_themes("confusion", draw)


def _coloured(shares_KK: NDArray[np.float64], theme: Theme) -> NDArray[np.float64]:
    """RGB `[K, K, 3]`: from the background's colour to that of right (diagonal) or wrong, by share."""
    from matplotlib.colors import to_rgb

    background, right, wrong = (np.array(to_rgb(colour)) for colour in (theme.background, theme.right, theme.wrong))
    full = np.where(np.eye(len(shares_KK), dtype=bool)[..., None], right, wrong)
    # Most confusions are a few percent of their row; the root makes them visible.
    strength = np.sqrt(shares_KK)[..., None]
    return background + strength * (full - background)


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
        axes.set_xlabel(f"accuracy, % of the class's test {results.noun}")
        axes.grid(axis="x", color=theme.faint, linewidth=0.6)
        axes.set_axisbelow(True)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower right", ncols=3, frameon=False, fontsize=8)
        return figure

    return render_themes("per_class", draw)
