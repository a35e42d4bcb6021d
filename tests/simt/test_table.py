"""Drives the case table through the emulated CUDA kernels."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from dove_ext.ops import library
from tests.cases import CASES, Case
from tests.cases.compare import compare_backward, compare_forward
from tests.simt.emulated import emulation

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ROWS = [case for case in CASES if case.op in library.CUDA_IMPLEMENTATIONS]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ROWS, ids=str)
def test_forward(case: Case, dtype: str, simt: ModuleType) -> None:
    with emulation(simt):
        compare_forward(case, DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [row for row in ROWS if row.grads], ids=str)
def test_backward(case: Case, dtype: str, simt: ModuleType) -> None:
    with emulation(simt):
        compare_backward(case, DTYPES[dtype])
