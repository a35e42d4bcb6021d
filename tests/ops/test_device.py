"""Drives the case table through the CUDA kernels of this build, on the GPU of this machine."""

from __future__ import annotations

import pytest
import torch

import dove_ext
from dove_ext import ops
from dove_ext.ops import library
from tests.cases import CASES, Case
from tests.cases.compare import compare_backward, compare_forward
from tests.ops.test_table import recorded_calls

_CUDA = dove_ext.info()["backends"]["cuda"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ROWS = [case for case in CASES if case.op in library.CUDA_IMPLEMENTATIONS]

pytestmark = pytest.mark.skipif(not _CUDA["available"], reason=_CUDA["why"] or "CUDA is available")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ROWS, ids=str)
def test_forward(case: Case, dtype: str) -> None:
    compare_forward(case, DTYPES[dtype], "cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [row for row in ROWS if row.grads], ids=str)
def test_backward(case: Case, dtype: str) -> None:
    compare_backward(case, DTYPES[dtype], "cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [row for row in ROWS if row.grads], ids=str)
def test_gradients_are_the_same_bits_every_time(case: Case, dtype: str) -> None:
    first = compare_backward(case, DTYPES[dtype], "cuda")
    for _ in range(3):
        for a, b in zip(first, compare_backward(case, DTYPES[dtype], "cuda"), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_lengths_on_the_host_are_refused() -> None:
    with pytest.raises(ValueError, match="zero_tail: lengths is on cpu, but tokens is on cuda"):
        ops.zero_tail(torch.ones(2, 3, 4, device="cuda"), torch.ones(2, dtype=torch.int32))


@pytest.mark.parametrize("case", ROWS, ids=str)
def test_opcheck(case: Case) -> None:
    for op, args in recorded_calls(case, "cuda"):
        torch.library.opcheck(op, args)
