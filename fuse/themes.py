"""How figures look and how they become files: SVG and PNG, light and dark, by matplotlib without a display.

Colours are Okabe and Ito's, told apart with any colour vision; where it matters, marks and places differ too.
"""

import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from fuse.text import shortened, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Files = dict[str, bytes]
"""Names and contents of files."""


@dataclass(frozen=True)
class Theme:
    """Colours of one look."""

    suffix: str
    """Added to file names."""
    paper: str
    ink: str
    faint: str
    """Grid lines."""
    low: str
    mid: str
    high: str
    right: str
    """Correct predictions, at full strength."""
    wrong: str
    truth: str
    """The true label where it is not among the predictions shown."""


LIGHT: Final = Theme(
    "", "#ffffff", "#1b1b1f", "#d5d5dc", "#e69f00", "#009e73", "#0072b2", "#0072b2", "#d55e00", "#9b5a86"
)
DARK: Final = Theme(
    "-dark", "#16181d", "#ececf1", "#3a3d46", "#f0b429", "#2bc79b", "#56b4e9", "#56b4e9", "#ff8a3d", "#cc9bbd"
)

LABEL_LENGTH: Final = 28
"""Characters of a name in a figure; tables have it whole."""

_PIXELS: Final = 2400
"""Longest side of a PNG; small figures have 200 pixels an inch."""

_INKED: Final = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor")
_PAPERED: Final = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
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
        colours: dict[Any, Any] = {**dict.fromkeys(_INKED, theme.ink), **dict.fromkeys(_PAPERED, theme.paper)}
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
    """An empty figure (inches) with its heading, and under it what has to be known first."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    lines = [line for note in notes for line in textwrap.wrap(drawable(note), int(width * 13))]
    figure.suptitle("\n".join([title, *lines]), fontsize=9, x=0.01, ha="left")
    return figure
