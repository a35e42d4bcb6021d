"""dove-base's encode at a fixed token count in ONNX Runtime, as `dove export --num-tokens` has it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dove_ext import DoveModel
from dove_ext.export import export


def session(model: DoveModel, pixels: Tensor, count: int) -> Callable[[], Any]:
    """Export, and return one run of it on the CPU.

    Args:
        model: on the CPU.
        pixels: float32 [B, 3, S, S] in [-1, 1].
        count: tokens of each image.

    Raises:
        ImportError: if onnxruntime or onnxscript is not installed.
    """
    import onnxruntime
    import onnxscript  # noqa: F401 (else `export` would say so in its own words)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        (path,) = export(model, "onnx", folder, parts=("encoder",), num_tokens=count)
        run = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {"pixels": (pixels / 2 + 0.5).contiguous().numpy()}
    return lambda: run.run(["tokens"], feed)
