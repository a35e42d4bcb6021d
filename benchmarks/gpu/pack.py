"""Packing against index_select and index_copy: `python -m benchmarks.gpu.pack [--json PATH]`."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from dove_ext import ops

from . import device

POSITIONS, WIDTH = 256, 512


def inputs(batch: int, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Padded tokens, lengths about half of K, cu_seqlens, and the indices of the kept rows."""
    generator = torch.Generator(device.name).manual_seed(seed)
    tokens = torch.randn(batch, POSITIONS, WIDTH, generator=generator, device=device.name).to(dtype)
    drawn = torch.randint(1, POSITIONS + 1, (batch,), generator=torch.Generator().manual_seed(7))
    lengths = drawn.int().to(device.name)
    keep = torch.arange(POSITIONS, device=device.name) < lengths[:, None]
    return tokens, lengths, ops.lengths_to_cu_seqlens(lengths), keep.flatten().nonzero()[:, 0]


def main(arguments: list[str] | None = None) -> int:
    options = device.arguments(__doc__ or "").parse_args(arguments)
    record = device.begin(options, "pack", arguments)
    for dtype in ("bf16",) if options.quick else ("bf16", "fp32"):
        for batch in device.batches(options, 1, 8, 64, 256):
            kind = device.DTYPES[dtype]
            size = batch * POSITIONS * WIDTH * torch.tensor([], dtype=kind).element_size()
            sets = device.sets_of(lambda seed, b=batch, t=kind: inputs(b, t, seed), 2 * size)
            total = int(sets[0][2][-1])
            kept = size * total // (batch * POSITIONS)
            packed = [ops.pack(tokens, cu, total) for tokens, _, cu, _ in sets]
            moves: dict[str, tuple[dict[str, device.Call], int]] = {
                "pack": (
                    {
                        "ours": lambda i, s=sets, n=total: ops.pack(s[i][0], s[i][2], n),
                        "index_select": lambda i, s=sets: s[i][0].flatten(0, 1).index_select(0, s[i][3]),
                    },
                    2 * kept,
                ),
                "unpack": (
                    {
                        "ours": lambda i, s=sets, p=packed: ops.unpack(p[i], s[i][2], POSITIONS),
                        "index_copy": lambda i, s=sets, p=packed, b=batch: (
                            p[i].new_zeros(b * POSITIONS, WIDTH).index_copy_(0, s[i][3], p[i])
                        ),
                    },
                    kept + size,
                ),
                "zero_tail": (
                    {
                        "ours": lambda i, s=sets: ops.zero_tail(s[i][0], s[i][1]),
                        "where": lambda i, s=sets: torch.where(
                            (torch.arange(POSITIONS, device=device.name) < s[i][1][:, None])[..., None],
                            s[i][0],
                            0,
                        ),
                    },
                    kept + size,
                ),
            }
            for what, (calls, moved) in moves.items():
                result = device.measure(
                    calls, sets=len(sets), seconds=options.seconds, bytes_moved=moved, flops=0, kind=dtype
                )
                setting = {"what": what, "batch": batch, "dtype": dtype}
                record.add(f"{what}, B={batch}, {dtype}", setting, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
