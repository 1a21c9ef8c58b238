"""Time per batch of our heads and of other models, as `benchmarks/figure6.py` measured it: the paper's Figure 6."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from cache.common.errors import ScoreError
from cache.common.files import read_json
from cache.common.workspace import Workspace
from fuse.report.figures import Files, Theme, drawable, new_figure, render_themes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE: Final = "figure6.json"
"""Name of the measurement below WORK/benchmarks/."""


def timing_file(workspace: Workspace, dataset: str) -> Path:
    """The measurement shown with `dataset`. The demo has a smaller one of its own."""
    return workspace.root / "benchmarks" / (f"demo-{FILE}" if dataset == "demo" else FILE)


@dataclass(frozen=True)
class Timed:
    """The time of one model."""

    model: str
    ours: bool
    batch: int
    """Clips in a batch, as in the paper."""
    frames: int
    """Frames in a clip."""
    seconds: float
    """Mean seconds of a training step on one batch."""
    batches: int
    """Batches that were timed."""
    what: str
    """What one step consists of, for people."""

    @property
    def shown(self) -> str:
        """The time with its unit."""
        return f"{1000 * self.seconds:.1f} ms" if self.seconds < 1 else f"{self.seconds:.2f} s"


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The times of all models, measured in one run on one machine."""

    device: str
    date: str
    notes: tuple[str, ...]
    models: tuple[Timed, ...]


def read_timing(path: Path) -> Timing | None:
    """The measurement in the file `path`, quickest model first; None if there is none.

    Raises `ScoreError` if the file is of another kind.
    """
    try:
        timing = msgspec.convert(read_json(path), Timing)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ScoreError(f"{path} is not a measurement of benchmarks/figure6.py: {error}; measure again") from error
    return replace(timing, models=tuple(sorted(timing.models, key=lambda model: model.seconds)))


def draw_timing(timing: Timing) -> Files:
    """Figure 6: seconds per batch, in increasing order, on a logarithmic axis."""
    models = timing.models

    def draw(theme: Theme) -> "Figure":
        figure = new_figure(8, 1.4 + 0.4 * len(models), f"Time per batch, {drawable(timing.device)}", timing.notes)
        axes = figure.add_subplot()
        for place, model in enumerate(models):
            axes.barh(place, model.seconds, color=theme.right if model.ours else theme.wrong, height=0.7)
            axes.text(model.seconds, place, f" {model.shown}", va="center", fontsize=8)
        axes.set_yticks(
            range(len(models)), [f"{drawable(model.model)} ({model.batch})" for model in models], fontsize=8
        )
        axes.set_ylim(len(models) - 0.4, -0.6)
        axes.set_xscale("log")
        axes.margins(x=0.15)
        axes.set_xlabel("seconds per batch (batch size in brackets)")
        return figure

    return render_themes("timing", draw)
