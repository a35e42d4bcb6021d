"""Drives the case table through the compiled CPU kernels of every instruction set this machine has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dove_ext import _C, ops
from dove_ext.ops import reference
from tests.cases import CASES, Case, cast

ISAS = {"portable": 0, "avx2": 1, "avx512": 2}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Any:
    best = max(i for i in ISAS.values() if _C.force_cpu_isa(i))
    if not _C.force_cpu_isa(ISAS[request.param]):
        pytest.skip(f"{request.param} is not in this build or cannot run on this machine")
    yield request.param
    _C.force_cpu_isa(best)


def outputs(result: Any) -> list[Tensor]:
    return [r for r in (result if isinstance(result, tuple) else (result,)) if r is not None]


def error(actual: Tensor, expected: Tensor) -> float:
    assert torch.isfinite(actual).all() or not torch.isfinite(expected).all(), "non-finite output"
    return (actual.double() - expected.double()).abs().max().item() if actual.numel() else 0.0


def check(
    case: Case, dtype: torch.dtype, actual: list[Tensor], low: list[Tensor], exact: list[Tensor]
) -> None:
    """Ours may err at most twice what plain PyTorch errs in the same dtype, plus the row's floor."""
    assert len(actual) == len(exact)
    for index, (a, p, e) in enumerate(zip(actual, low, exact, strict=True)):
        assert a.shape == e.shape
        a, p, e = (case.valid(case.make(dtype), index, t) for t in (a, p, e))
        if case.exact or not a.is_floating_point():
            torch.testing.assert_close(a, p, rtol=0, atol=0, msg=f"{case} output {index} is not exact")
            continue
        bound = 2 * error(p, e) + case.floor[dtype]
        assert error(a, e) <= bound, f"{case} output {index}: error {error(a, e):.3g} above {bound:.3g}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward(case: Case, dtype: str, isa: str) -> None:
    inputs = case.make(DTYPES[dtype])
    actual = outputs(getattr(ops, case.op)(**inputs))
    plain = getattr(reference, case.op)
    check(
        case, DTYPES[dtype], actual, outputs(plain(**inputs)), outputs(plain(**cast(inputs, torch.float64)))
    )


def gradients(case: Case, function: Any, inputs: dict[str, Any]) -> list[Tensor]:
    """Gradients of the row's inputs under a fixed, uneven weighting of all outputs."""
    inputs = dict(inputs)
    for name in case.grads:
        inputs[name] = inputs[name].detach().requires_grad_()
    results = [r for r in outputs(function(**inputs)) if r.requires_grad]
    # With plain sums a swapped row would go unnoticed.
    loss = sum(
        (r * torch.linspace(-1, 1, r.numel(), dtype=torch.float64).reshape(r.shape).to(r.dtype)).sum()
        for r in results
    )
    return list(torch.autograd.grad(loss, [inputs[n] for n in case.grads]))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [c for c in CASES if c.grads], ids=str)
def test_backward(case: Case, dtype: str, isa: str) -> None:
    kind = DTYPES[dtype]
    inputs = case.make(kind)
    plain = getattr(reference, case.op)
    actual = gradients(case, getattr(ops, case.op), inputs)
    low = gradients(case, plain, inputs)
    exact = gradients(case, plain, cast(inputs, torch.float64))
    for name, a, p, e in zip(case.grads, actual, low, exact, strict=True):
        bound = 2 * error(p, e) + case.floor[kind] * max(1.0, e.abs().max().item() if e.numel() else 1.0)
        assert error(a, e) <= bound, f"{case} grad {name}: error {error(a, e):.3g} above {bound:.3g}"


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
    # PyTorch's share of the way back is element by element here; that of eos_probability is matrix products.
    first, *others = on_threads(lambda: gradients(case, getattr(ops, case.op), inputs), 1, 2, 5)
    for other in others:
        for name, a, b in zip(case.grads, first, other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=f"{case} grad {name}")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_opcheck(case: Case) -> None:
    calls = recorded_calls(case)
    assert calls, f"{case} never reached torch.ops.dove"
    for op, args in calls:
        torch.library.opcheck(op, args)


def recorded_calls(case: Case) -> list[tuple[Any, tuple[Any, ...]]]:
    """The operator calls a wrapper makes, seen by a dispatch mode."""
    from torch.utils._python_dispatch import TorchDispatchMode

    calls: list[tuple[Any, tuple[Any, ...]]] = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.namespace == "dove":
                calls.append((func, args))
            return func(*args, **(kwargs or {}))

    with Record():
        getattr(ops, case.op)(**case.make(torch.float32))
    return calls
