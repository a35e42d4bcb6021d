"""Drives the case table through the compiled CPU kernels of every instruction set this machine has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dove_ext import _C, ops
from tests.cases import CASES, Case
from tests.cases.compare import compare_backward, compare_forward, gradients, move, outputs

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


# PyTorch's share of the way back is element by element, except for these: matrix products and sums.
THREADED = ("eos_probability", "pair_norm", "bias_gelu", "add_branches")


def on_threads(function: Any, *threads: int) -> list[list[Tensor]]:
    """What `function` returns on each number of threads."""
    before = torch.get_num_threads()
    try:
        results = []
        for count in threads:
            torch.set_num_threads(count)
            results.append(function())
        return results
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_result_on_any_number_of_threads(case: Case, dtype: str) -> None:
    inputs = case.make(DTYPES[dtype])
    first, *others = on_threads(lambda: outputs(getattr(ops, case.op)(**inputs)), 1, 2, 5)
    for other in others:
        for a, b in zip(first, other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [c for c in CASES if c.grads and c.op != "eos_probability"], ids=str)
def test_same_gradients_on_any_number_of_threads(case: Case, dtype: str) -> None:
    inputs = case.make(DTYPES[dtype])
    first, *others = on_threads(lambda: gradients(getattr(ops, case.op), case, inputs), 1, 2, 5)
    for other in others:
        for name, a, b in zip(case.grads, first, other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=f"{case} grad {name}")


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
