"""GroupNorm + SiLU (+ residual) against the same in eager PyTorch, channels-last, at the VQGAN's shapes.

    python -m benchmarks.ops.group_norm [--backward] [--json PATH]

With --backward what is timed is the forward and backward pass together, from given gradients of all outputs
to those of all inputs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import group_norm, silu

from dove_ext import ops

from .. import timing
from ..record import Record, arguments

SHAPES = ((128, 256, 256), (256, 64, 64), (512, 16, 16))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def eager(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> Any:
    if residual is None:
        return silu(group_norm(x, 32, weight, bias, 1e-6))
    summed = x + residual
    return silu(group_norm(summed, 32, weight, bias, 1e-6)), summed


def ours(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> Any:
    return ops.group_norm(x, weight, bias, residual=residual)


def forward(function: Callable[..., Any], inputs: tuple[Tensor | None, ...]) -> Callable[[], Any]:
    """A call of the forward alone, in inference mode."""

    @torch.inference_mode()
    def call() -> Any:
        return function(*inputs)

    return call


def forward_backward(function: Callable[..., Any], inputs: tuple[Tensor | None, ...]) -> Callable[[], Any]:
    """A call of the forward and of the backward from given channels-last gradients."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
    wanted = [leaf for leaf in leaves if leaf is not None]
    grads = [torch.randn_like(t) for t in (inputs[0], inputs[3]) if t is not None]

    def call() -> Any:
        results = function(*leaves)
        results = results if isinstance(results, tuple) else (results,)
        return torch.autograd.grad(results, wanted, grads)

    return call


def main(options: list[str] | None = None) -> int:
    parser = arguments(__doc__ or "", seconds=3.0)
    parser.add_argument("--backward", action="store_true", help="time forward and backward together")
    args = parser.parse_args(options)
    if args.threads:
        torch.set_num_threads(args.threads)
    prepare = forward_backward if args.backward else forward
    record = Record("ops.group_norm", args.json, options)
    for channels, height, width in SHAPES[2:] if args.quick else SHAPES:
        for images in args.batches or ((1,) if args.quick else (1, 8)):
            for name in ("bf16",) if args.quick else DTYPES:
                for with_residual in (False, True):
                    shape, dtype = (images, channels, height, width), DTYPES[name]
                    x, residual = (
                        torch.randn(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)
                        for _ in range(2)
                    )
                    weight, bias = torch.rand(channels, dtype=dtype), torch.rand(channels, dtype=dtype)
                    inputs = (x, weight, bias, residual if with_residual else None)
                    calls = {"ours": prepare(ours, inputs), "torch": prepare(eager, inputs)}
                    rounds = 1 if args.quick else 5
                    times = timing.interleave(calls, seconds=args.seconds, min_rounds=rounds)
                    label = "add, norm, SiLU" if with_residual else "norm, SiLU"
                    if args.backward:
                        label += ", and backward"
                    record.add(
                        f"{label}, {list(shape)}, {name}",
                        {"setting": label, "shape": list(shape), "dtype": name},
                        timing.compare(times, "ours"),
                    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
