"""GroupNorm + SiLU (+ residual) against the same in eager PyTorch, channels-last, at the VQGAN's shapes.

python -m benchmarks.group_norm [--backward] [--json PATH]

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

from . import timing

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


def main(arguments: list[str] | None = None) -> int:
    parser = timing.arguments(__doc__.splitlines()[0], seconds=3.0)
    parser.add_argument("--backward", action="store_true", help="time forward and backward together")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    prepare = forward_backward if options.backward else forward
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
                    inputs = (x, weight, bias, residual if with_residual else None)
                    times = timing.interleave(
                        {"ours": prepare(ours, inputs), "torch": prepare(eager, inputs)},
                        seconds=options.seconds,
                    )
                    result = timing.compare(times, "ours")
                    label = "add, norm, SiLU" if with_residual else "norm, SiLU"
                    if options.backward:
                        label += ", and backward"
                    timing.print_row(f"{label}, {list(shape)}, {dtype_name}", result)
                    rows.append({"setting": label, "shape": list(shape), "dtype": dtype_name, **result})
    print(timing.machine())
    if options.json:
        timing.write_record(options.json, "group_norm", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
