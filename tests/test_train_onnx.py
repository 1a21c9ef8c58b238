"""A head exported to ONNX computes the same in onnxruntime, for any number of clips."""

import onnxruntime
import pytest
import torch

from train.heads import Head, HeadSettings


@pytest.mark.parametrize("pool", ["mean", pytest.param("max", marks=pytest.mark.slow)])
def test_exported_head_gives_the_same_logits_in_onnxruntime(pool, tmp_path):
    torch.manual_seed(0)
    head = Head(HeadSettings(channels=6, classes=4, hidden=8, layers=2, pool=pool)).eval()
    example_TBC = torch.randn(5, 2, 6)
    path = tmp_path / "head.onnx"
    torch.onnx.export(
        head,
        (example_TBC,),
        path,
        dynamo=True,
        verbose=False,
        input_names=["features"],
        output_names=["logits"],
        dynamic_shapes=({1: torch.export.Dim("clips")},),
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for clips in (1, 2, 7):
        x_TBC = torch.randn(5, clips, 6)
        (logits,) = session.run(None, {"features": x_TBC.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), head(x_TBC).detach(), rtol=1e-5, atol=1e-5)
