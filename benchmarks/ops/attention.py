"""Causal attention with rotary embedding: `dove_ext.ops.attention` against PyTorch.

Both sides start from views of one projection [B, N, H, 3 D], as a GPT-NeoX layer makes it, rotate 16 of 64
dimensions and attend causally. PyTorch's side is what a model does in eager mode: rotate q and k, then
`scaled_dot_product_attention(is_causal=True)` on [B, H, N, D]. The rows named forward+backward go from the
projection to its gradient.

Then dove-base's token decoder with `attend_padding=False` at 32 and 128 of 256 tokens an image: keys and
values of the kept tokens alone ("dove") against those of all slots, the dropped ones of which nobody sees.

    python -m benchmarks.ops.attention [--json PATH]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from dove_ext import DoveConfig, ops
from dove_ext.models.generator import FEWEST_DROPPED, TokenDecoder

from .. import timing
from ..record import Record, arguments

HEADS, LENGTH, DIM, ROTARY = 8, 512, 64, 16
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def rotary_table(positions: int, width: int) -> Tensor:
    """[positions, width]: cosines, then sines."""
    angles = torch.arange(positions)[:, None] * 10000.0 ** -(torch.arange(0, width, 2) / width)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def eager(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate [B, N, H, D] and attend; cos and sin are [N, 1, R] in the dtype of q."""
    q, k = (
        torch.cat([x[..., :ROTARY] * cos + rotate_half(x[..., :ROTARY]) * sin, x[..., ROTARY:]], dim=-1)
        for x in (q, k)
    )
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def both(batch: int, dtype: torch.dtype, backward: bool) -> dict[str, Callable[[], Tensor]]:
    """The two candidates on the same inputs."""
    generator = torch.Generator().manual_seed(batch)
    qkv = torch.randn(batch, LENGTH, HEADS, 3 * DIM, generator=generator).to(dtype).requires_grad_(backward)
    grad = torch.randn(batch, LENGTH, HEADS, DIM, generator=generator).to(dtype)
    table = rotary_table(LENGTH, ROTARY)
    half = ROTARY // 2
    cos, sin = (
        torch.cat([t, t], dim=1)[:, None].to(dtype) for t in (table[:, :half], table[:, half:])
    )  # [N, 1, R]

    def call(attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        out = attend(*qkv.split(DIM, dim=-1))
        return torch.autograd.grad(out, qkv, grad)[0] if backward else out

    return {
        "dove": partial(call, partial(ops.attention, rotary=table)),
        "torch": partial(call, partial(eager, cos=cos, sin=sin)),
    }


def token_decoder(batch: int, kept: int, dtype: torch.dtype, quick: bool) -> dict[str, Callable[[], Tensor]]:
    """The two ways on one model and the same tokens; `quick`: of one layer."""
    torch.manual_seed(0)
    config = DoveConfig(attend_padding=False)
    stack = replace(config.token_decoder, layers=1) if quick else config.token_decoder
    decoder = TokenDecoder(replace(config, token_decoder=stack))
    decoder.reset_parameters()
    decoder.to(dtype)
    tokens = torch.randn(batch, config.num_tokens, config.token_width).to(dtype)
    lengths = torch.full((batch,), kept, dtype=torch.int32)
    tokens = ops.zero_tail(tokens, lengths)

    @torch.no_grad()
    def call(fewest_dropped: int) -> Tensor:
        with patch.dict(FEWEST_DROPPED, cpu=fewest_dropped):
            return decoder(tokens, lengths)

    return {"dove": partial(call, 1), "all slots": partial(call, 10**9)}


def main(options: list[str] | None = None) -> int:
    args = arguments(__doc__ or "", seconds=4.0).parse_args(options)
    if args.threads:
        torch.set_num_threads(args.threads)
    record = Record("ops.attention", args.json, options)
    for backward in (False,) if args.quick else (False, True):
        for batch in args.batches or ((1,) if args.quick else (1, 8)):
            for name in ("bf16",) if args.quick else DTYPES:
                candidates = both(batch, DTYPES[name], backward)
                difference = (candidates["dove"]() - candidates["torch"]()).abs().max().item()
                rounds, warmup = (1, 1) if args.quick else (5, 5)
                times = timing.interleave(candidates, seconds=args.seconds, min_rounds=rounds, warmup=warmup)
                work = "forward+backward" if backward else "forward"
                setting = {"work": work, "shape": [batch, HEADS, LENGTH, DIM], "dtype": name}
                record.add(
                    f"{work} {setting['shape']} {name}",
                    setting | {"largest_difference": difference},
                    timing.compare(times, "dove"),
                )
    for name in ("fp32",) if args.quick else DTYPES:
        for batch in args.batches or ((1,) if args.quick else (1, 8)):
            for kept in (32,) if args.quick else (32, 128):
                candidates = token_decoder(batch, kept, DTYPES[name], args.quick)
                times = timing.interleave(
                    candidates, seconds=args.seconds, min_rounds=1 if args.quick else 5, warmup=1
                )
                setting = {"work": "token decoder", "batch": batch, "kept": kept, "dtype": name}
                record.add(
                    f"token decoder, {batch} x {kept} of 256, {name}", setting, timing.compare(times, "dove")
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
