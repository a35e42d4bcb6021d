"""Rows for the element-wise ops of the parallel-residual block."""

from __future__ import annotations

from functools import partial

import torch

from tests.cases.case import Case, Inputs


def _values(*shape: int, dtype: torch.dtype, strided: bool = False, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    if strided:  # neither rows nor values are dense, and NaN lies between them
        wide = torch.full((*shape[:-1], 2 * shape[-1] + 1), float("nan"))
        wide[..., 1::2] = torch.randn(*shape, generator=generator)
        return wide.to(dtype)[..., 1::2]
    return torch.randn(*shape, generator=generator).to(dtype)


def _pair_norm(
    dtype: torch.dtype,
    *,
    shape: tuple[int, ...],
    parameters: torch.dtype | None = None,
    offset: float = 0.0,
    strided: bool = False,
    eps: float = 1e-5,
) -> Inputs:
    names = ("weight_a", "bias_a", "weight_b", "bias_b")
    inputs: Inputs = {
        name: (_values(shape[-1], dtype=torch.float32, seed=i) + 1 - i % 2).to(parameters or dtype)
        for i, name in enumerate(names)
    }
    return inputs | {"x": _values(*shape, dtype=dtype, strided=strided) + offset, "eps": eps}


def _bias_gelu(
    dtype: torch.dtype,
    *,
    shape: tuple[int, ...],
    parameters: torch.dtype | None = None,
    strided: bool = False,
) -> Inputs:
    bias = _values(shape[-1], dtype=torch.float32, seed=1).to(parameters or dtype)
    return {"x": 2 * _values(*shape, dtype=dtype, strided=strided), "bias": bias}


def _add_branches(
    dtype: torch.dtype,
    *,
    shape: tuple[int, ...],
    parameters: torch.dtype | None = None,
    strided: bool = False,
) -> Inputs:
    inputs: Inputs = {
        name: _values(*shape, dtype=dtype, strided=strided, seed=i) for i, name in enumerate(("x", "a", "b"))
    }
    for i, name in enumerate(("bias_a", "bias_b")):
        inputs[name] = _values(shape[-1], dtype=torch.float32, seed=3 + i).to(parameters or dtype)
    return inputs


_SHAPES: dict[str, Inputs] = {
    "one": {"shape": (1, 1)},
    "no_rows": {"shape": (2, 0, 16)},
    "31_rows": {"shape": (31, 64)},
    "odd_width": {"shape": (2, 5, 33)},
    "257": {"shape": (257, 257)},
    "paper_width": {"shape": (2, 9, 512), "parameters": torch.float32},
    "wide": {"shape": (3, 2056)},
    "strided": {"shape": (3, 4, 24), "strided": True},
}

CASES = [
    *(
        Case(
            "pair_norm",
            name,
            partial(_pair_norm, **row),
            grads=("x", "weight_a", "bias_a", "weight_b", "bias_b"),
        )
        for name, row in {
            **_SHAPES,
            "many_rows": {"shape": (200, 8)},
            "large_mean": {"shape": (5, 256), "offset": 100.0},
            "large_eps": {"shape": (5, 64), "eps": 0.5},
        }.items()
    ),
    *(
        Case("bias_gelu", name, partial(_bias_gelu, **row), grads=("x", "bias"))
        for name, row in _SHAPES.items()
    ),
    *(
        Case("add_branches", name, partial(_add_branches, **row), grads=("x", "a", "b", "bias_a", "bias_b"))
        for name, row in _SHAPES.items()
    ),
]
