"""Backbone, heads and fusion as one ONNX file: crops of a video's clips in, class probabilities out.

The crops are made outside: ONNX's resize does not round between its two passes as torch's does for 8-bit pictures, and
a pixel that differs by one level of 255 is no longer the same feature. Shapes: N clips, T frames in a clip, K classes.
"""

import json
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn

from cache.common.errors import MrrnError
from cache.fingerprint import LEVELS
from extract.network.backbones import columns_of, read_levels
from extract.network.preprocess import Normalise
from extract.network.weights import Weights
from fuse.trained import Heads

if TYPE_CHECKING:
    from extract.settings import ExtractSettings

INPUT: Final = "crops"
OUTPUTS: Final = ("probabilities", "clip_probabilities")


class EndToEnd(nn.Module):
    """Crops [N, T, h, w, 3] uint8 of one video's clips -> its probabilities [K], and each clip's [N, K], float32.

    As in prediction: features as float16, a softmax for each head, levels added by the fusion weights, the mean over
    clips, and last the temperature of the fused probabilities, if there is one.
    """

    def __init__(self, heads: Heads, settings: "ExtractSettings", weights: Weights) -> None:
        super().__init__()
        self._read = read_levels(
            weights, device="cpu", dtype=torch.float32, levels=settings.levels, depths=settings.depths
        )
        self.net = self._read.net  # so that its tensors are this module's
        self.heads = nn.ModuleDict({level: heads.heads[level].eval() for level in LEVELS})
        self._columns = columns_of(weights, settings.levels, settings.depths)
        self._normalise = Normalise("cpu", torch.float32, weights.preprocess)
        self._shares = heads.fusion_weights
        self._temperature = heads.calibration.temperatures["fused"] if heads.calibration else 1.0

    def forward(self, crops_NTHW3: Tensor) -> tuple[Tensor, Tensor]:
        """Both outputs."""
        rows = self._read(self._normalise(crops_NTHW3.flatten(0, 1))).half().float()
        features_TNC = rows.unflatten(0, crops_NTHW3.shape[:2]).transpose(0, 1)
        parts = [
            self._shares[level] * torch.softmax(self.heads[level](features_TNC[:, :, self._columns[level]]), dim=1)
            for level in LEVELS
        ]
        clips_NK = parts[0] + parts[1] + parts[2]
        video_K = clips_NK.mean(dim=0)
        if self._temperature != 1.0:
            video_K = torch.softmax(torch.log(video_K.clamp_min(1e-30)) / self._temperature, dim=0)
        return video_K, clips_NK


def to_onnx(heads: Heads, settings: "ExtractSettings", weights: Weights) -> bytes:
    """The file's content. The number of clips is free, their length is the heads'.

    The metadata hold the classes in label order, the clip rule, the preprocessing and the features' fingerprint. Raises
    `MrrnError` if the packages that write ONNX are missing, or if the network has operations that ONNX lacks.
    """
    try:
        for name in ("onnx", "onnxscript"):
            import_module(name)
    except ImportError as error:
        raise MrrnError(f"writing ONNX needs onnx and onnxscript ({error}): pip install onnx onnxscript") from error
    side = weights.preprocess.crop
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about its own exporter, and about lists of nn.LSTM's weights
        try:
            program = torch.onnx.export(
                EndToEnd(heads, settings, weights).eval(),
                (torch.zeros(2, heads.clips.length, side, side, 3, dtype=torch.uint8),),
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                dynamic_shapes=({0: torch.export.Dim("clips")},),
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise MrrnError(
                f"{weights.backbone} cannot be written as ONNX: {str(error).splitlines()[0]}. "
                "`mrrn train export` writes the heads alone"
            ) from error
    assert program is not None
    model = program.model_proto
    described = {
        "classes": heads.classes,
        "clips": vars(heads.clips),
        "preprocess": str(weights.preprocess),
        "fingerprint": {"identity": dict(heads.identity), "environment": dict(heads.environment)},
        "fusion_weights": dict(heads.fusion_weights),
        "temperature": heads.calibration.temperatures["fused"] if heads.calibration else None,
    }
    for name, value in described.items():
        model.metadata_props.add(key=name, value=value if isinstance(value, str) else json.dumps(value))
    return model.SerializeToString()
