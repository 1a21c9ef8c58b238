"""A finished run's head as an ONNX file, for programs without this project and without torch."""

import json
import warnings
from importlib import import_module

import torch

from cache.common.errors import TrainingError
from train.config import RunConfig
from train.heads import Head

INPUT, OUTPUT = "features", "logits"

_IN_METADATA = ("dataset", "split", "level", "pool", "seed", "classes", "weights", "fingerprint")
"""Fields of the run's configuration that the file repeats."""


def to_onnx(head: Head, config: RunConfig) -> bytes:
    """Returns the file's content: `features` float32 `[T, clips, C]` to `logits` float32 `[clips, K]`.

    `T` is the length of the run's clips; the number of clips is free. The softmax is left to the reader. The metadata
    hold level, classes in the order of logits, clip rule, backbone weights and the features' fingerprint. Raises
    `TrainingError` if the packages that write ONNX are missing.
    """
    try:
        for name in ("onnx", "onnxscript"):
            import_module(name)
    except ImportError as error:
        raise TrainingError(
            f"writing ONNX needs the packages onnx and onnxscript ({error}): pip install onnx onnxscript"
        ) from error
    with warnings.catch_warnings():
        # nn.LSTM and nn.GRU also hold their parameters in a list, which the exporter takes for lost state.
        warnings.filterwarnings("ignore", message=r"The tensor attributes? .*_flat_weights")
        warnings.filterwarnings("ignore", category=FutureWarning)  # torch warns about its own exporter
        program = torch.onnx.export(
            head.eval(),
            (torch.zeros(config.clips.length, 2, config.channels),),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({1: torch.export.Dim("clips")},),
        )
    assert program is not None
    model = program.model_proto
    for name, value in config.described(_IN_METADATA).items():
        model.metadata_props.add(key=name, value=value if isinstance(value, str) else json.dumps(value))
    return model.SerializeToString()
