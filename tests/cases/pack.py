"""Rows for pack, unpack, zero_tail and lengths_to_cu_seqlens."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from tests.cases.case import Case, Inputs


def _cu(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *torch.tensor(lengths, dtype=torch.int64).cumsum(0).tolist()], dtype=torch.int32)


def _pack(
    dtype: torch.dtype, *, lengths: list[int], max_len: int, width: int, strided: bool = False
) -> Inputs:
    generator = torch.Generator().manual_seed(len(lengths) * 1000 + max_len)
    shape = (len(lengths), max_len, width)
    if strided:  # a view whose images and positions are not dense
        padded = torch.randn(shape[1], shape[0], 2 * width, generator=generator).transpose(0, 1)[..., :width]
    else:
        padded = torch.randn(shape, generator=generator)
    padded = padded.to(dtype)
    for image, length in enumerate(lengths):
        padded[image, length:] = float("nan")  # padding must never be read
    return {"padded": padded, "cu_seqlens": _cu(lengths)}


def _unpack(dtype: torch.dtype, *, lengths: list[int], max_len: int, width: int) -> Inputs:
    generator = torch.Generator().manual_seed(len(lengths) * 1000 + max_len)
    packed = torch.randn(sum(lengths), width, generator=generator).to(dtype)
    return {"packed": packed, "cu_seqlens": _cu(lengths), "max_len": max_len}


def _zero_tail(dtype: torch.dtype, **row: Any) -> Inputs:
    inputs = _pack(dtype, **row)
    return {"tokens": inputs["padded"], "lengths": inputs["cu_seqlens"].diff()}


def _lengths(dtype: torch.dtype, *, count: int, integers: torch.dtype = torch.int32) -> Inputs:
    generator = torch.Generator().manual_seed(count)
    return {"lengths": torch.randint(0, 257, (count,), generator=generator, dtype=integers)}


_SHAPES = {
    "one": {"lengths": [1], "max_len": 1, "width": 1},
    "empty_batch": {"lengths": [], "max_len": 4, "width": 3},
    "all_empty": {"lengths": [0, 0], "max_len": 4, "width": 3},
    "ragged": {"lengths": [31, 0, 257, 1], "max_len": 257, "width": 33},
    "full": {"lengths": [16, 16], "max_len": 16, "width": 512},
}

CASES = [
    *(Case("pack", k, partial(_pack, **v), grads=("padded",), exact=True) for k, v in _SHAPES.items()),
    Case(
        "pack", "strided", partial(_pack, lengths=[3, 0, 31], max_len=31, width=8, strided=True),
        grads=("padded",), exact=True,
    ),
    *(
        Case("zero_tail", k, partial(_zero_tail, **v), grads=("tokens",), exact=True)
        for k, v in _SHAPES.items()
    ),
    Case(
        "zero_tail", "strided", partial(_zero_tail, lengths=[3, 0, 31], max_len=31, width=8, strided=True),
        grads=("tokens",), exact=True,
    ),
    *(Case("unpack", k, partial(_unpack, **v), grads=("packed",), exact=True) for k, v in _SHAPES.items()),
    *(
        Case("lengths_to_cu_seqlens", str(n), partial(_lengths, count=n), exact=True)
        for n in (0, 1, 31, 257, 600)
    ),
    Case("lengths_to_cu_seqlens", "int64", partial(_lengths, count=33, integers=torch.int64), exact=True),
]  # fmt: skip
