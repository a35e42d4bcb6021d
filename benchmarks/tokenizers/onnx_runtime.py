"""dove-base's encode at a fixed token count in ONNX Runtime: exported from plain PyTorch ops, float32."""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dove_ext
from dove_ext import DoveModel


class FixedEncode(nn.Module):
    """Tokens [B, count, D] of pixels [B, 3, S, S]: one graph, without a choice of length."""

    def __init__(self, model: DoveModel, count: int) -> None:
        super().__init__()
        self.model, self.count = model, count

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model.generate(self.model.condition(pixels), self.count).tokens


def session(model: DoveModel, pixels: Tensor, count: int) -> Callable[[], Any]:
    """Export for the batch of `pixels` and return one run of it on the CPU.

    Raises:
        ImportError: if onnxruntime or onnxscript is not installed.
    """
    import onnxruntime
    import onnxscript  # noqa: F401 (the exporter needs it and would only say so late)

    previous = dove_ext.set_backend("torch")
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            warnings.catch_warnings(),
            redirect_stdout(sys.stderr),  # the exporter talks; standard output is for the record
        ):
            warnings.simplefilter("ignore")
            path = str(Path(folder) / "encode.onnx")
            torch.onnx.export(FixedEncode(model, count).eval(), (pixels,), path, dynamo=True, verbose=False)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            run = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    finally:
        dove_ext.set_backend(previous)
    feed = {run.get_inputs()[0].name: pixels.contiguous().numpy()}
    return lambda: run.run(None, feed)
