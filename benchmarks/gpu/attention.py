"""Attention over [H_v ; t] against FlashAttention's way: `python -m benchmarks.gpu.attention [--json PATH]`.

The generator's positions see a bidirectional prefix of 256 and are causal behind it. FlashAttention and
cuDNN know no such mask, so their users make two calls: the prefix in full, then the rest against all keys,
causal from the lower right corner. FlexAttention takes the mask itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from dove_ext import ops

from ..record import Record, numbers
from . import device

HEADS, DIM, PREFIX = 8, 64, 256
Triple = tuple[Tensor, Tensor, Tensor]


def inputs(batch: int, length: int, dtype: torch.dtype, seed: int) -> Triple:
    generator = torch.Generator(device.name).manual_seed(seed)
    packed = torch.randn(batch, length, HEADS, 3 * DIM, generator=generator, device=device.name).to(dtype)
    q, k, v = packed.chunk(3, -1)
    return q, k, v


def visible_pairs(length: int, prefix: int) -> int:
    """Pairs of query and key that the mask lets through."""
    return sum(max(i + 1, min(prefix, length)) for i in range(length))


def two_calls(prefix: int, backend: SDPBackend) -> Callable[[Triple], Tensor]:
    def call(tensors: Triple) -> Tensor:
        from torch.nn.attention.bias import causal_lower_right

        q, k, v = (t.transpose(1, 2) for t in tensors)
        with sdpa_kernel(backend):
            if prefix == 0:
                return scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
            first = scaled_dot_product_attention(q[:, :, :prefix], k[:, :, :prefix], v[:, :, :prefix])
            rest = q[:, :, prefix:]
            mask: Any = causal_lower_right(rest.shape[2], k.shape[2])
            if backend == SDPBackend.CUDNN_ATTENTION:
                ones = torch.ones(rest.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
                mask = ones.tril(k.shape[2] - rest.shape[2])
            second = scaled_dot_product_attention(rest, k, v, attn_mask=mask)
        return torch.cat([first, second], dim=2).transpose(1, 2)

    return call


def flash_attn(prefix: int) -> Callable[[Triple], Tensor]:
    def call(tensors: Triple) -> Tensor:
        from flash_attn import flash_attn_func

        q, k, v = tensors
        if prefix == 0:
            return flash_attn_func(q, k, v, causal=True)
        first = flash_attn_func(q[:, :prefix], k[:, :prefix], v[:, :prefix])
        return torch.cat([first, flash_attn_func(q[:, prefix:], k, v, causal=True)], dim=1)

    return call


def flex(length: int, prefix: int) -> Callable[[Triple], Tensor]:
    made: list[Any] = []  # at the first call, so that a failure is this candidate's alone

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) | (k < prefix)

    def call(tensors: Triple) -> Tensor:
        if not made:
            from torch.nn.attention.flex_attention import create_block_mask, flex_attention

            mask = create_block_mask(sees, None, None, length, length, device=device.name)
            made.extend([device.compiled(flex_attention), mask])
        compiled, mask = made
        q, k, v = (t.transpose(1, 2) for t in tensors)
        return compiled(q, k, v, block_mask=mask).transpose(1, 2)

    return call


def with_backward(call: Callable[[Triple], Tensor], sets: list[Triple]) -> device.Call:
    leaves = [tuple(t.detach().contiguous().requires_grad_() for t in tensors) for tensors in sets]
    grads = [torch.randn_like(tensors[0]) for tensors in leaves]

    def run(index: int) -> Any:
        return torch.autograd.grad(call(leaves[index]), leaves[index], grads[index])  # type: ignore[arg-type]

    return run


def check(calls: dict[str, Callable[[Triple], Tensor]], tensors: Triple) -> None:
    """All candidates must agree, or the comparison is worth nothing."""
    expected = calls["ours"](tensors).float()
    for name, call in calls.items():
        try:
            actual = call(tensors).float()
        except Exception:  # measure() reports what cannot run
            continue
        if (actual - expected).norm() > 2e-2 * expected.norm():
            raise RuntimeError(f"{name} computes something else than ours")


def main(arguments: list[str] | None = None) -> int:
    parser = device.arguments(__doc__ or "")
    parser.add_argument("--lengths", type=numbers, metavar="N[,N...]", help="only these numbers of positions")
    options = parser.parse_args(arguments)
    record = device.begin(options, "attention", arguments)
    longest = 16 if options.dry_run else PREFIX
    few = (longest + 32,) if options.dry_run else (512, 576)
    lengths = options.lengths or (few if options.quick else (256, 288, 384, 512, 576, 640, 832))
    for dtype in ("bf16",) if options.quick else ("bf16", "fp16"):
        for prefix in (longest, 0):
            for length in lengths:
                for batch in device.batches(options, 1, 8, 64, 256):
                    rows(record, options.seconds, batch, length, prefix, dtype)
    return 0


def rows(record: Record, seconds: float, batch: int, length: int, prefix: int, dtype: str) -> None:
    """Forward, and forward with backward."""
    size = batch * length * HEADS * DIM * 2
    sets = device.sets_of(lambda seed: inputs(batch, length, device.DTYPES[dtype], seed), 4 * size)
    device.new_row()
    calls: dict[str, Callable[[Triple], Tensor]] = {
        "ours": lambda t: ops.attention(*t, prefix=prefix),
        "sdpa flash": two_calls(prefix, SDPBackend.FLASH_ATTENTION),
        "sdpa cudnn": two_calls(prefix, SDPBackend.CUDNN_ATTENTION),
        "flex": flex(length, prefix),
        "flash-attn": flash_attn(prefix),
    }
    check(calls, sets[0])
    flops = 4.0 * DIM * HEADS * batch * visible_pairs(length, prefix)
    for backward in (False, True):
        runs: dict[str, device.Call] = {
            who: with_backward(call, sets) if backward else lambda i, c=call: c(sets[i])
            for who, call in calls.items()
        }
        result = device.measure(
            runs, sets=len(sets), seconds=seconds, kind=dtype, bytes_moved=(12 if backward else 4) * size,
            flops=(3.5 if backward else 1) * flops,
        )  # fmt: skip
        what = "forward and backward" if backward else "forward"
        setting = {"pass": what, "batch": batch, "positions": length, "prefix": prefix, "dtype": dtype}
        record.add(f"{what}, B={batch}, N={length}, prefix {prefix}, {dtype}", setting, result)


if __name__ == "__main__":
    sys.exit(main())
