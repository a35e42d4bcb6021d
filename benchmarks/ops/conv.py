"""A residual block's second half (GroupNorm, SiLU, 3x3 convolution, sum) against the same in eager PyTorch.

    python -m benchmarks.ops.conv [--json PATH]

Both sides work in channels-last memory; the weights of ours are packed beforehand, as the models do it. A row
also says how far both are from float64 on one image (root mean square, relative).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, group_norm, silu

from dove_ext import ops
from dove_ext.memory import keep_freed_memory

from .. import timing
from ..record import Record, arguments

SHAPES = ((128, 256), (128, 128), (256, 64), (256, 32), (512, 16))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def inputs(channels: int, side: int, images: int, dtype: torch.dtype) -> dict[str, Tensor]:
    torch.manual_seed(0)
    x, residual = (
        torch.randn(images, channels, side, side, dtype=dtype).contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    )
    weight = torch.randn(channels, channels, 3, 3) / (9 * channels) ** 0.5
    return {
        "x": x,
        "weight": weight.to(dtype).contiguous(memory_format=torch.channels_last),
        "bias": torch.randn(channels, dtype=dtype),
        "norm_weight": torch.rand(channels, dtype=dtype),
        "norm_bias": torch.rand(channels, dtype=dtype),
        "residual": residual,
    }


def eager(
    x: Tensor, weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor, residual: Tensor
) -> Tensor:
    return residual + conv2d(silu(group_norm(x, 32, norm_weight, norm_bias, 1e-6)), weight, bias, padding=1)


def call(function: Callable[..., Tensor], arguments: dict[str, Tensor]) -> Callable[[], Any]:
    @torch.inference_mode()
    def run() -> Any:
        return function(**arguments)

    return run


def errors(given: dict[str, Tensor]) -> dict[str, float]:
    """Of both sides on the first image, against float64: root mean square, relative."""
    one = {n: t[:1] if t.dim() == 4 and n != "weight" else t for n, t in given.items()}
    exact = eager(**{n: t.double() for n, t in one.items()})
    found = {}
    for who, function in (("ours", ops.conv3x3), ("torch", eager)):
        error = ((function(**one).double() - exact).pow(2).mean() / exact.pow(2).mean()).sqrt()
        found[who] = float(f"{error.item():.2g}")
    return found


def main(options: list[str] | None = None) -> int:
    args = arguments(__doc__ or "", seconds=3.0).parse_args(options)
    if args.threads:
        torch.set_num_threads(args.threads)
    keep_freed_memory()  # for both sides
    record = Record("ops.conv", args.json, options)
    for channels, side in SHAPES[-1:] if args.quick else SHAPES:
        for images in args.batches or ((1,) if args.quick else (1, 8)):
            for name in ("bf16",) if args.quick else DTYPES:
                given = inputs(channels, side, images, DTYPES[name])
                packed = given | {"packed": ops.pack_conv3x3(given["weight"])}
                sides = {"ours": call(ops.conv3x3, packed), "torch": call(eager, given)}
                times = timing.interleave(sides, seconds=args.seconds, min_rounds=1 if args.quick else 5)
                shape, error = [images, channels, side, side], errors(given)
                record.add(
                    f"{shape}, {name}, error {error['ours']:.1e} ({error['torch']:.1e})",
                    {"shape": shape, "dtype": name, "error": error},
                    timing.compare(times, "ours"),
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
