"""Predictions as text and as JSON, printed as they come."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click

from cache.common.console import FINISHED_WITH_FAILURES, say
from cache.common.errors import DecodeError
from cache.common.interrupts import done_so_far
from cache.common.progress import progress
from cache.common.text import visible
from fuse.caveats import weights_caveats
from fuse.metrics import ranked
from fuse.predict import Prediction
from fuse.trained import Heads

_BAR: Final = 24
"""Characters of a bar that stands for 100 %."""


def show_predictions(predictions: Iterator[Prediction], heads: Heads, files: Sequence[Path], *, as_json: bool) -> None:
    """Print predictions as they come (JSON: all at the end, in the order asked for) and set the exit code."""
    notes = weights_caveats(heads.identity)
    done: list[Prediction] = []
    if not as_json:
        for note in notes:
            say(f"! {note}")
    predicted = done_so_far(lambda: f"{len(done):,} of {len(files):,} videos were predicted")
    with predicted, progress("predict", len(files), "videos") as bar:
        for prediction in predictions:
            done.append(prediction)
            bar.update(len(done))
            if not as_json:
                say(to_text(prediction, heads.classes))
    if as_json:
        order = {str(path): index for index, path in enumerate(files)}
        done.sort(key=lambda prediction: order[prediction.video])
        answers = [to_json(prediction, heads.classes) for prediction in done]
        # ASCII, so that no encoding of the output changes a name.
        calibration = heads.calibration and asdict(heads.calibration)
        click.echo(json.dumps({"notes": notes, "calibration": calibration, "predictions": answers}, indent=2))
    finish({each.video: each.reason for each in done if each.fused is None}, len(done), "predicted")


def finish(failed: Mapping[str, str], videos: int, what: str) -> None:
    """End with exit code 3 if some videos could not be `what`, with the reasons. Raises `DecodeError` if none could."""
    if failed and len(failed) == videos:
        video, reason = next(iter(failed.items()))
        raise DecodeError(f"no video could be {what}: {video}: {reason}")
    if failed:
        say(f"{len(failed)} of {videos} videos could not be {what}", err=True)
        sys.exit(FINISHED_WITH_FAILURES)


def to_text(prediction: Prediction, classes: Sequence[str]) -> str:
    """The most probable classes with probabilities and bars, and how long it took; first "none of these", if so."""
    name = visible(prediction.video)
    if prediction.fused is None:
        return f"{name}\n  not predicted: {visible(prediction.reason)}"
    top = [(visible(classes[index]), share) for index, share in _top(prediction)]
    width = max(len(shown) for shown, _ in top)
    lines = [
        f"  {shown.ljust(width)}  {100 * share:5.1f} %  {'█' * round(_BAR * share)}".rstrip() for shown, share in top
    ]
    lines.append(
        f"  {prediction.frames} frames, {prediction.frames_read} read, {prediction.clips} clips; "
        f"features {prediction.features_seconds:.2f} s "
        f"(decoding {prediction.decode_seconds:.2f} s beside the network), heads {prediction.heads_seconds:.2f} s"
    )
    lines += [f"  note: {visible(note)}" for note in (prediction.clips_note, prediction.reason) if note]
    if prediction.none_of_these:
        lines.insert(0, f"  none of these (most like {top[0][0]}, {100 * top[0][1]:.0f} %)")
    return "\n".join([name, *lines])


def _top(prediction: Prediction) -> list[tuple[int, float]]:
    """The most probable classes, in the order of `fused`, with their calibrated probabilities if there are any."""
    if prediction.fused is None:
        return []
    shown = prediction.fused if prediction.calibrated is None else prediction.calibrated
    return [(index, float(shown[index])) for index in ranked(prediction.fused)]


def to_json(prediction: Prediction, classes: Sequence[str]) -> dict[str, Any]:
    """All of a prediction as JSON values; probabilities of all classes, in label order, as `levels` and `fused` say
    them, and as `calibrated`.
    """
    fused, calibrated = prediction.fused, prediction.calibrated
    return {
        "video": prediction.video,
        "predicted": fused is not None,
        "reason": prediction.reason,
        "top": [{"class": classes[index], "probability": share} for index, share in _top(prediction)],
        **vars(prediction),
        "calibrated": None if calibrated is None else calibrated.tolist(),
        "fused": None if fused is None else fused.tolist(),
        "levels": {level: values.tolist() for level, values in prediction.levels.items()},
    }
