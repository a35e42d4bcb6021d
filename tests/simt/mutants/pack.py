"""Faults in packing."""

from __future__ import annotations

from functools import partial

from tests.simt.mutants.mutant import Mutant

_pack = partial(Mutant, file="pack.cu", dtype="fp32")

NOT_NEEDED: dict[str, tuple[str, ...]] = {}

MUTANTS = [
    _pack(
        name="one row too many is kept",
        old="const bool kept = k < length &&",
        new="const bool kept = k <= length &&",
        rows=("unpack-ragged",),
    ),
    _pack(
        name="nothing is written behind a length",
        old="if (kind == Kind::kPack && !kept) continue;",
        new="if (!kept) continue;",
        rows=("unpack-ragged",),
    ),
    _pack(
        name="sums of warps are read before they are there",
        old="    __syncthreads();\n    int32_t total = 0;",
        new="    int32_t total = 0;",
        rows=("lengths_to_cu_seqlens-257",),
    ),
    _pack(
        name="sums of warps are written while they are read",
        old="    __syncthreads();  // warp_sum is written again\n",
        new="",
        rows=("lengths_to_cu_seqlens-600",),
        seeds=(0, 1, 2),
    ),
    _pack(
        name="the sum so far is lost",
        old="before += total;",
        new="before = total;",
        rows=("lengths_to_cu_seqlens-600",),
    ),
]
