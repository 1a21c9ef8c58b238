"""Predictions of new videos as text and as JSON."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from fuse.text import visible

if TYPE_CHECKING:
    from fuse.predict import Prediction

TOP: Final = 5
"""Classes shown."""

_BAR: Final = 24
"""Characters of a bar that stands for 100 %."""


def ranked(probabilities_K: NDArray[np.float64], top: int = TOP) -> list[int]:
    """Indices of the most probable classes, the first one on a tie."""
    return np.argsort(-probabilities_K, kind="stable")[:top].tolist()


def as_text(prediction: "Prediction", classes: Sequence[str]) -> str:
    """The top classes with probabilities and bars, and how long it took."""
    name = visible(prediction.video)
    if prediction.fused is None:
        return f"{name}\n  not predicted: {visible(prediction.reason)}"
    width = max(len(visible(classes[index])) for index in ranked(prediction.fused))
    lines = [name]
    for index in ranked(prediction.fused):
        share = prediction.fused[index]
        bar = "█" * round(_BAR * share)
        lines.append(f"  {visible(classes[index]).ljust(width)}  {100 * share:5.1f} %  {bar}".rstrip())
    lines.append(
        f"  {prediction.frames} frames, {prediction.clips} clips; features {prediction.features_seconds:.2f} s "
        f"(decoding {prediction.decode_seconds:.2f} s beside the network), heads {prediction.heads_seconds:.2f} s"
    )
    if prediction.reason:
        lines.append(f"  note: {visible(prediction.reason)}")
    return "\n".join(lines)


def as_json(prediction: "Prediction", classes: Sequence[str]) -> dict[str, Any]:
    """Everything known of one prediction; probabilities of all classes, in label order, under `levels` and `fused`."""
    fused = prediction.fused
    return {
        "video": prediction.video,
        "predicted": fused is not None,
        "reason": prediction.reason,
        "top": []
        if fused is None
        else [{"class": classes[index], "probability": float(fused[index])} for index in ranked(fused)],
        "fused": None if fused is None else fused.tolist(),
        "levels": {level: values.tolist() for level, values in prediction.levels.items()},
        "frames": prediction.frames,
        "clips": prediction.clips,
        "features_seconds": prediction.features_seconds,
        "decode_seconds": prediction.decode_seconds,
        "heads_seconds": prediction.heads_seconds,
    }
