"""EOS detection and p_eos against matmul + arg-max and softmax: `python -m benchmarks.gpu.eos [--json PATH]`.

The inputs are the realistic setting of `benchmarks.ops.eos`: a few hundred rows win nearly always, one
position of each image is planted for EOS. The baseline makes all logits, eager and under torch.compile. The
floor is ours: the witness rows at all positions and one pass over the vocabulary.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from dove_ext import ops

from ..ops.eos import POSITIONS, VOCABULARY, WIDTH, clusters, matmul_argmax, two_words
from ..record import Record
from . import device

Inputs = dict[str, Any]


def to_device(inputs: Inputs) -> Inputs:
    return {name: t.to(device.name) if isinstance(t, Tensor) else t for name, t in inputs.items()}


def softmax_entry(hidden: Tensor, weight: Tensor, bias: Tensor | None = None, **_: Any) -> Tensor:
    logits = linear(hidden, weight, None if bias is None else bias.to(hidden.dtype))
    return logits.float().softmax(-1)[..., 0]


def scan_row(record: Record, seconds: float, setting: str, batch: int, dtype: str, inputs: Inputs) -> None:
    hidden, weight = inputs["hidden"], inputs["weight"]
    positions, width = hidden.shape[1:]
    words = weight.shape[0]
    # One set: the weights alone (51 MB) are as large as the L2 cache.
    device.new_row()
    compiled = device.compiled(matmul_argmax)
    calls: dict[str, device.Call] = {
        "ours": lambda _: ops.eos_scan(**inputs),
        "matmul + arg-max": lambda _: matmul_argmax(**inputs),
        "compiled": lambda _: compiled(**inputs),
    }
    element = hidden.element_size()
    survivors = batch if words > 2 else 0
    tried = inputs["witness"].numel() if "witness" in inputs else words
    result = device.measure(
        calls, sets=1, seconds=seconds, kind=dtype,
        bytes_moved=element * width * (batch * positions + words),
        flops=2.0 * width * (batch * positions * (1 + tried) + survivors * words),
    )  # fmt: skip
    row = {"what": "eos_scan", "setting": setting, "batch": batch, "dtype": dtype}
    record.add(f"eos_scan, {setting}, B={batch}, {dtype}", row, result)


def probability_row(
    record: Record, seconds: float, batch: int, dtype: str, inputs: Inputs, backward: bool
) -> None:
    hidden, weight = (inputs[name].detach().requires_grad_(backward) for name in ("hidden", "weight"))
    grad = torch.randn(hidden.shape[:2], device=device.name)

    def run(function: Any) -> device.Call:
        def call(_: int) -> Any:
            out = function(hidden, weight)
            return torch.autograd.grad(out, (hidden, weight), grad) if backward else out

        return call

    device.new_row()
    compiled = device.compiled(softmax_entry)
    calls = {
        "ours": run(ops.eos_probability),
        "softmax": run(softmax_entry),
        "compiled": run(lambda h, w: compiled(h, w)),
    }
    products = 5 if backward else 1  # logits; with gradients: logits again for each, and two products
    element = hidden.element_size()
    result = device.measure(
        calls, sets=1, seconds=seconds, kind=dtype,
        bytes_moved=element * (2 if backward else 1) * (hidden.numel() + weight.numel()),
        flops=2.0 * products * hidden.shape[0] * hidden.shape[1] * weight.numel(),
    )  # fmt: skip
    what = "p_eos, forward and backward" if backward else "p_eos"
    record.add(f"{what}, B={batch}, {dtype}", {"what": what, "batch": batch, "dtype": dtype}, result)


def main(arguments: list[str] | None = None) -> int:
    options = device.arguments(__doc__ or "").parse_args(arguments)
    record = device.begin(options, "eos", arguments)
    vocabulary = 400 if options.dry_run else VOCABULARY
    print(f"vocabulary {vocabulary}, {POSITIONS} positions, width {WIDTH}")
    for dtype in ("bf16",) if options.quick else ("bf16", "fp16"):
        for batch in device.batches(options, 1, 8, 64, 256):
            kind = device.DTYPES[dtype]
            inputs = to_device(clusters(batch, kind, witness=True, vocabulary=vocabulary))
            without = {key: t for key, t in inputs.items() if key != "witness"}
            words = to_device(two_words(batch, kind, POSITIONS))
            for setting, chosen in (
                ("clusters", inputs),
                ("clusters, no witness", without),
                ("two words", words),
            ):
                scan_row(record, options.seconds, setting, batch, dtype, chosen)
            probability_row(record, options.seconds, batch, dtype, without, backward=False)
            if batch <= 64:  # the peer's logits and their gradient: 6 GB each at 64 images
                probability_row(record, options.seconds, batch, dtype, without, backward=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
