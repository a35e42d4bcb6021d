"""Drives the case table through the compiled CPU kernels of every instruction set this machine has."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dove_ext import _C, ops
from tests.cases import CASES, Case
from tests.cases.compare import compare_backward, compare_forward, move, outputs

ISAS = {"portable": 0, "avx2": 1, "avx512": 2}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Any:
    best = max(i for i in ISAS.values() if _C.force_cpu_isa(i))
    if not _C.force_cpu_isa(ISAS[request.param]):
        pytest.skip(f"{request.param} is not in this build or cannot run on this machine")
    yield request.param
    _C.force_cpu_isa(best)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward(case: Case, dtype: str, isa: str) -> None:
    compare_forward(case, DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [c for c in CASES if c.grads], ids=str)
def test_backward(case: Case, dtype: str, isa: str) -> None:
    compare_backward(case, DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_result_on_any_number_of_threads(case: Case, dtype: str) -> None:
    inputs = case.make(DTYPES[dtype])
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(outputs(getattr(ops, case.op)(**inputs)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_opcheck(case: Case) -> None:
    calls = recorded_calls(case)
    assert calls, f"{case} never reached torch.ops.dove"
    for op, args in calls:
        torch.library.opcheck(op, args)


def recorded_calls(case: Case, device: str = "cpu") -> list[tuple[Any, tuple[Any, ...]]]:
    """The operator calls a wrapper makes, seen by a dispatch mode."""
    from torch.utils._python_dispatch import TorchDispatchMode

    calls: list[tuple[Any, tuple[Any, ...]]] = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.namespace == "dove":
                calls.append((func, args))
            return func(*args, **(kwargs or {}))

    with Record():
        getattr(ops, case.op)(**move(case.make(torch.float32), device))
    return calls
