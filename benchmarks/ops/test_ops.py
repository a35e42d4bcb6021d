"""Single ops under pytest-benchmark, compiled and in plain PyTorch: `pytest benchmarks/ops/test_ops.py`.

Nothing is asserted about time. Shapes are those of dove-base at batch 8 (group_norm: one image).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from dove_ext import ops

pytest.importorskip("pytest_benchmark")

DTYPES = (torch.float32, torch.bfloat16)
BATCH, POSITIONS, WIDTH, WORDS = 8, 256, 512, 50304


@pytest.fixture(params=["auto", "torch"], ids=["dove_ext", "PyTorch"], autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[None]:
    previous = ops.set_backend(request.param)
    yield
    ops.set_backend(previous)


@pytest.fixture(params=DTYPES, ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    torch.manual_seed(0)
    chosen: torch.dtype = request.param
    return chosen


Timed = Callable[..., Any]


def test_attention(benchmark: Timed, dtype: torch.dtype) -> None:
    q, k, v = (torch.randn(BATCH, 2 * POSITIONS, 8, 64, dtype=dtype) for _ in range(3))
    benchmark(ops.attention, q, k, v, prefix=0)


def test_eos_scan(benchmark: Timed, dtype: torch.dtype) -> None:
    hidden, words = torch.randn(BATCH, POSITIONS, WIDTH, dtype=dtype), torch.randn(WORDS, WIDTH, dtype=dtype)
    benchmark(ops.eos_scan, hidden, words, witness=torch.arange(1, 257, dtype=torch.int32))


def test_eos_probability(benchmark: Timed, dtype: torch.dtype) -> None:
    hidden, words = torch.randn(1, POSITIONS, WIDTH, dtype=dtype), torch.randn(WORDS, WIDTH, dtype=dtype)
    benchmark(ops.eos_probability, hidden, words)


def test_group_norm(benchmark: Timed, dtype: torch.dtype) -> None:
    x = torch.randn(1, 128, 256, 256, dtype=dtype).contiguous(memory_format=torch.channels_last)
    benchmark(ops.group_norm, x, torch.ones(128, dtype=dtype), torch.zeros(128, dtype=dtype))


def test_pack(benchmark: Timed, dtype: torch.dtype) -> None:
    lengths = torch.arange(32, 32 + 24 * BATCH, 24, dtype=torch.int32)
    padded = torch.randn(BATCH, POSITIONS, WIDTH, dtype=dtype)
    benchmark(ops.pack, padded, ops.lengths_to_cu_seqlens(lengths))


def test_unpack(benchmark: Timed, dtype: torch.dtype) -> None:
    lengths = torch.arange(32, 32 + 24 * BATCH, 24, dtype=torch.int32)
    packed = torch.randn(int(lengths.sum()), WIDTH, dtype=dtype)
    benchmark(ops.unpack, packed, ops.lengths_to_cu_seqlens(lengths), POSITIONS)
