"""A finished run's head as an ONNX file, for programs that have neither this project nor torch."""

import json
import warnings
from importlib import import_module

import torch

from cache.common.errors import TrainingError
from cache.fingerprint import CHANNELS
from train.config import RunConfig
from train.heads import Head

INPUT, OUTPUT = "features", "logits"


def to_onnx(head: Head, config: RunConfig) -> bytes:
    """The file's content: `features` float32 `[T, clips, C]` in, `logits` float32 `[clips, K]` out, any number of
    clips.

    `T` is the length of the run's clips. Softmax is left to whoever reads it, as `train.score` does. The metadata say
    what the head is: level, classes in the order of logits, clips, backbone weights, the features' fingerprint.
    TrainingError where the packages that write ONNX are missing.
    """
    _require("onnx", "onnxscript")
    with warnings.catch_warnings():
        # nn.LSTM and nn.GRU hold their parameters a second time in a list, which the exporter takes for lost state.
        warnings.filterwarnings("ignore", message=r"The tensor attributes? .*_flat_weights")
        warnings.filterwarnings("ignore", category=FutureWarning)  # of torch, about its own exporter
        program = torch.onnx.export(
            head.eval(),
            (torch.zeros(config.clips.length, 2, CHANNELS[config.level]),),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({1: torch.export.Dim("clips")},),
        )
    assert program is not None
    model = program.model_proto
    for name, value in _metadata(config).items():
        model.metadata_props.add(key=name, value=value if isinstance(value, str) else json.dumps(value))
    content: bytes = model.SerializeToString()
    return content


def _require(*packages: str) -> None:
    try:
        for name in packages:
            import_module(name)
    except ImportError as error:
        raise TrainingError(
            f"writing ONNX needs the packages {' and '.join(packages)} ({error}): pip install {' '.join(packages)}"
        ) from error


def _metadata(config: RunConfig) -> dict[str, object]:
    value = config.to_json()
    same = ("dataset", "split", "level", "pool", "seed", "classes", "weights", "fingerprint")
    return {**{name: value[name] for name in same}, "recipe": config.recipe.name, "clips": value["recipe"]["clips"]}
