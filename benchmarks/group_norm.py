"""GroupNorm + SiLU (+ residual) against the same in eager PyTorch, channels-last, at the VQGAN's shapes.

python -m benchmarks.group_norm [--json PATH]
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import group_norm, silu

from benchmarks import timing
from dove_ext import ops

SHAPES = ((128, 256, 256), (256, 64, 64), (512, 16, 16))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def eager(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> Any:
    if residual is None:
        return silu(group_norm(x, 32, weight, bias, 1e-6))
    summed = x + residual
    return silu(group_norm(summed, 32, weight, bias, 1e-6)), summed


def main(arguments: list[str] | None = None) -> int:
    options = timing.arguments(__doc__.splitlines()[0], seconds=3.0).parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = []
    for channels, height, width in SHAPES:
        for images in (1, 8):
            for dtype_name, dtype in DTYPES.items():
                for with_residual in (False, True):
                    shape = (images, channels, height, width)
                    x, residual = (
                        torch.randn(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)
                        for _ in range(2)
                    )
                    weight, bias = torch.rand(channels, dtype=dtype), torch.rand(channels, dtype=dtype)
                    added = residual if with_residual else None
                    calls = {
                        "ours": lambda x=x, w=weight, b=bias, r=added: ops.group_norm(x, w, b, residual=r),
                        "torch": lambda x=x, w=weight, b=bias, r=added: eager(x, w, b, r),
                    }
                    with torch.inference_mode():
                        times = timing.interleave(calls, seconds=options.seconds)
                    result = timing.compare(times, "ours")
                    label = "add, norm, SiLU" if with_residual else "norm, SiLU"
                    timing.print_row(f"{label}, {list(shape)}, {dtype_name}", result)
                    rows.append({"setting": label, "shape": list(shape), "dtype": dtype_name, **result})
    print(timing.machine())
    if options.json:
        timing.write_record(options.json, "group_norm", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
