"""GroupNorm + SiLU (+ residual), channels-last, against eager PyTorch and torch.compile.

    python -m benchmarks.gpu.group_norm [--json PATH]

The floor counts every tensor once: x in and the result out, with a residual one more in and one more out.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from dove_ext import ops

from ..ops.group_norm import SHAPES, eager
from . import device

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def inputs(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Inputs:
    """x, residual, weight, bias."""
    generator = torch.Generator(device.name).manual_seed(seed)
    x, residual = (
        torch.randn(shape, generator=generator, device=device.name)
        .to(dtype)
        .contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    )
    weight, bias = (torch.rand(shape[1], generator=generator, device=device.name).to(dtype) for _ in range(2))
    return x, residual, weight, bias


def run(function: Any, sets: list[Inputs], residual: bool, backward: bool) -> device.Call:
    leaves = [tuple(t.detach().requires_grad_(backward) for t in tensors) for tensors in sets]

    def call(index: int) -> Any:
        x, added, weight, bias = leaves[index]
        out = function(x, weight, bias, added if residual else None)
        if not backward:
            return out
        outs = out if isinstance(out, tuple) else (out,)
        wanted = leaves[index] if residual else (x, weight, bias)
        return torch.autograd.grad(outs, wanted, [o.detach() for o in outs])

    return call


def main(arguments: list[str] | None = None) -> int:
    options = device.arguments(__doc__ or "").parse_args(arguments)
    record = device.begin(options, "group_norm", arguments)
    for channels, height, width in SHAPES[2:] if options.quick else SHAPES:
        for batch in device.batches(options, 1, 8, 64):
            for dtype in ("bf16",) if options.quick else ("bf16", "fp16", "fp32"):
                kind, shape = device.DTYPES[dtype], (batch, channels, height, width)
                size = batch * channels * height * width * torch.tensor([], dtype=kind).element_size()
                sets = device.sets_of(lambda seed, s=shape, t=kind: inputs(s, t, seed), 4 * size)
                for residual in (False, True):
                    for backward in (False, True):
                        device.new_row()
                        functions = {
                            "ours": lambda x, w, b, r: ops.group_norm(x, w, b, residual=r),
                            "eager": eager,
                            "compiled": device.compiled(eager),
                        }
                        moved = (4 if residual else 2) * size
                        if backward:  # x, the gradients that arrive, the one that leaves
                            moved += (4 if residual else 3) * size
                        result = device.measure(
                            {who: run(f, sets, residual, backward) for who, f in functions.items()},
                            sets=len(sets), seconds=options.seconds, bytes_moved=moved, flops=0, kind=dtype,
                        )  # fmt: skip
                        what = "add, norm, SiLU" if residual else "norm, SiLU"
                        what += ", with gradients" if backward else ""
                        setting = {"what": what, "shape": list(shape), "dtype": dtype}
                        record.add(f"{what}, {list(shape)}, {dtype}", setting, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
