"""Rows for attention."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from tests.cases.case import Case, Inputs

_NAN = float("nan")


def _rotary(positions: int, width: int) -> torch.Tensor:
    angles = torch.arange(positions)[:, None] * 10000.0 ** -(torch.arange(0, width, 2) / width)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _padded(
    dtype: torch.dtype,
    *,
    batch: int = 1,
    queries: int,
    keys: int | None = None,
    heads: int = 2,
    dim: int = 64,
    rotary: int = 0,
    kv_lens: list[int] | None = None,
    view: bool = True,
    magnitude: float = 1.0,
    **options: Any,
) -> Inputs:
    keys = queries if keys is None else keys
    generator = torch.Generator().manual_seed(queries * 1000 + keys + dim)
    if view:  # slices of one packed projection, with unused space behind every position
        packed = torch.randn(batch, keys, heads, 3 * dim + 8, generator=generator).to(dtype)
        q, k, v = (packed[..., i * dim : (i + 1) * dim] for i in range(3))
        if queries <= keys:
            q = q[:, keys - queries :]
        else:
            q = torch.randn(batch, queries, heads, dim, generator=generator).to(dtype)
    else:
        q = torch.randn(batch, heads, queries, dim, generator=generator).to(dtype).transpose(1, 2)
        k, v = (torch.randn(batch, keys, heads, dim, generator=generator).to(dtype) for _ in range(2))
    inputs: Inputs = {"q": q * magnitude, "k": k, "v": v, **options}
    if kv_lens is not None:
        inputs["kv_lens"] = torch.tensor(kv_lens, dtype=torch.int32)
        inputs["q"] = inputs["q"].clone()
        for image, length in enumerate(kv_lens):
            k[image, length:] = _NAN
            v[image, length:] = _NAN
    if rotary:
        inputs["rotary"] = _rotary(max(queries, keys) + 3, rotary)
    return inputs


def _packed(
    dtype: torch.dtype,
    *,
    queries: list[int],
    keys: list[int],
    heads: int = 2,
    dim: int = 64,
    rotary: int = 0,
    gaps: Sequence[int] = (),
    **options: Any,
) -> Inputs:
    generator = torch.Generator().manual_seed(sum(queries) * 1000 + sum(keys))
    q = torch.randn(sum(queries), heads, dim, generator=generator).to(dtype)
    kv = torch.randn(sum(keys), heads, 2 * dim, generator=generator).to(dtype)
    for gap in gaps:
        kv[sum(keys[:gap]) : sum(keys[: gap + 1])] = _NAN
    k, v = kv[..., :dim], kv[..., dim:]
    if not keys:  # opcheck cannot clone an empty view
        k, v = (torch.empty(0, heads, dim, dtype=dtype) for _ in range(2))
    cu_q, cu_k = (
        torch.tensor([0, *torch.tensor(lengths, dtype=torch.int64).cumsum(0).tolist()], dtype=torch.int32)
        for lengths in (queries, keys)
    )
    inputs = {
        "q": q,
        "k": k,
        "v": v,
        "cu_seqlens_q": cu_q,
        "cu_seqlens_k": cu_k,
        **options,
    }
    return inputs | ({"rotary": _rotary(max([*queries, *keys], default=0), rotary)} if rotary else {})


_ROWS: dict[str, dict[str, Any]] = {
    "empty_batch": {"batch": 0, "queries": 5, "view": False},
    "no_tokens": {"batch": 2, "queries": 0},
    "no_keys": {"queries": 3, "keys": 0, "view": False},
    "one": {"queries": 1, "rotary": 16},
    "31": {"batch": 3, "queries": 31, "rotary": 16},
    "257": {"queries": 257, "rotary": 16},
    "512": {"batch": 2, "queries": 512, "heads": 1, "rotary": 16},
    "257_full": {"queries": 257, "prefix": None},
    "65_prefix_33": {"batch": 2, "queries": 65, "prefix": 33, "rotary": 16},
    "prefix_beyond": {"queries": 31, "prefix": 1000},
    "dim16": {"queries": 49, "dim": 16, "rotary": 16},
    "dim32": {"queries": 129, "dim": 32, "rotary": 8},
    "dim48": {"queries": 50, "dim": 48},
    "dim128": {"queries": 130, "dim": 128, "rotary": 128},
    "dense_transposed": {"queries": 70, "view": False, "rotary": 2},
    "cache_1_of_257": {"batch": 2, "queries": 1, "keys": 257, "rotary": 16},
    "cache_17_of_150": {"queries": 17, "keys": 150, "rotary": 16},
    "cache_17_of_150_full": {"queries": 17, "keys": 150, "prefix": None, "rotary": 16, "heads": 1},
    "cache_64_of_320_prefix_256": {"queries": 64, "keys": 320, "prefix": 256, "rotary": 16},
    "more_queries_than_keys": {"queries": 40, "keys": 9, "view": False},
    "more_queries_full": {"batch": 2, "queries": 70, "keys": 33, "prefix": None, "rotary": 16},
    "more_queries_prefix_is_keys": {"queries": 66, "keys": 65, "prefix": 65, "rotary": 8, "heads": 1},
    "more_queries_kv_lens": {
        "batch": 3,
        "queries": 9,
        "keys": 7,
        "kv_lens": [7, 0, 2],
        "prefix": 7,
        "rotary": 16,
    },
    "kv_lens_poisoned": {"batch": 4, "queries": 65, "kv_lens": [65, 31, 0, 1], "rotary": 16},
    "kv_lens_full": {"batch": 3, "queries": 7, "keys": 130, "kv_lens": [129, 64, 1], "prefix": None},
    "large_scores": {"queries": 300, "magnitude": 60.0},
    "large_scores_64": {"queries": 64, "magnitude": 60.0, "heads": 1},
    "scale": {"queries": 31, "scale": 0.5},
}
_PACKED_ROWS: dict[str, dict[str, Any]] = {
    "packed": {"queries": [31, 0, 129, 1], "keys": [31, 0, 129, 1], "rotary": 16},
    "packed_cross": {"queries": [5, 0, 33, 2], "keys": [70, 3, 33, 0], "prefix": None},
    "packed_cache": {"queries": [4, 9, 1], "keys": [70, 9, 33], "prefix": 3, "rotary": 16},
    "packed_more_queries": {
        "queries": [67, 67, 67, 67],
        "keys": [67, 1, 0, 33],
        "prefix": None,
        "rotary": 16,
    },
    # As a key/value cache is read whose images have seen different numbers of positions: what is behind them
    # is a sequence without queries.
    "packed_gaps": {
        "queries": [16, 0, 16, 0, 16, 0],
        "keys": [70, 3, 40, 33, 73, 0],
        "prefix": 24,
        "rotary": 16,
        "gaps": [1, 3, 5],
    },
    "packed_gaps_of_one": {
        "queries": [1, 0, 1, 0],
        "keys": [130, 70, 67, 133],
        "rotary": 8,
        "gaps": [1, 3],
        "heads": 1,
    },
    "packed_nothing": {"queries": [], "keys": []},
}

# The plain version errs by chance less than its rounding in the shortest rows; bfloat16 has 8 bits.
_FLOOR = {torch.float32: 2e-6, torch.bfloat16: 8e-3}

CASES = [
    *(
        Case("attention", label, partial(_padded, **row), grads=("q", "k", "v"), floor=_FLOOR)
        for label, row in _ROWS.items()
    ),
    *(
        Case("attention", label, partial(_packed, **row), grads=("q", "k", "v"), floor=_FLOOR)
        for label, row in _PACKED_ROWS.items()
    ),
]
