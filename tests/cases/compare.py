"""Holds one row of the table against the float64 reference, whoever computes the op."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dove_ext import ops
from dove_ext.ops import reference
from tests.cases.case import Case, Inputs, cast


def outputs(result: Any) -> list[Tensor]:
    return [r for r in (result if isinstance(result, tuple) else (result,)) if r is not None]


def error(actual: Tensor, expected: Tensor) -> float:
    assert torch.isfinite(actual).all() or not torch.isfinite(expected).all(), "non-finite output"
    return (actual.double() - expected.double()).abs().max().item() if actual.numel() else 0.0


def plain_error(plain: Tensor, expected: Tensor, wider: Tensor) -> float:
    """What plain PyTorch errs, in float32 where it overflows in the row's own dtype."""
    return error(plain if torch.isfinite(plain).all() else wider, expected)


def floor(case: Case, dtype: torch.dtype) -> float:
    """Float16 is held to what the row allows bfloat16."""
    return case.floor.get(dtype, case.floor[torch.bfloat16])


def move(inputs: Inputs, device: str) -> Inputs:
    return {name: v.to(device) if isinstance(v, Tensor) else v for name, v in inputs.items()}


def compare_forward(case: Case, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    """Ours may err at most twice what plain PyTorch errs in the same dtype, plus the row's floor."""
    inputs = case.make(dtype)
    plain = getattr(reference, case.op)
    actual = [r.cpu() for r in outputs(getattr(ops, case.op)(**move(inputs, device)))]
    low, exact = outputs(plain(**inputs)), outputs(plain(**cast(inputs, torch.float64)))
    middle = outputs(plain(**cast(inputs, torch.float32)))
    assert len(actual) == len(exact)
    for index, (a, p, m, e) in enumerate(zip(actual, low, middle, exact, strict=True)):
        assert a.shape == e.shape
        a, p, m, e = (case.valid(case.make(dtype), index, t) for t in (a, p, m, e))
        if case.exact or not a.is_floating_point():
            torch.testing.assert_close(a, p, rtol=0, atol=0, msg=f"{case} output {index} is not exact")
            continue
        bound = 2 * plain_error(p, e, m) + floor(case, dtype)
        assert error(a, e) <= bound, f"{case} output {index}: error {error(a, e):.3g} above {bound:.3g}"
    return actual


def gradients(function: Any, case: Case, inputs: Inputs, device: str = "cpu") -> list[Tensor]:
    inputs = move(inputs, device)
    for name in case.grads:
        inputs[name] = inputs[name].detach().requires_grad_()
    results = [r for r in outputs(function(**inputs)) if r.requires_grad]
    # A fixed, uneven weighting: with plain sums a swapped row would go unnoticed.
    loss = sum((r * _weights(r)).sum() for r in results)
    return [g.cpu() for g in torch.autograd.grad(loss, [inputs[n] for n in case.grads])]  # type: ignore[arg-type]


def _weights(r: Tensor) -> Tensor:
    weights = torch.linspace(-1, 1, r.numel(), dtype=torch.float64).reshape(r.shape)
    return weights.to(device=r.device, dtype=r.dtype)


def compare_backward(case: Case, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    """As `compare_forward` for the gradients; the floor grows with the largest gradient."""
    inputs = case.make(dtype)
    plain = getattr(reference, case.op)
    actual = gradients(getattr(ops, case.op), case, inputs, device)
    low = gradients(plain, case, inputs)
    middle, exact = (gradients(plain, case, cast(inputs, t)) for t in (torch.float32, torch.float64))
    for name, a, p, m, e in zip(case.grads, actual, low, middle, exact, strict=True):
        largest = max(1.0, e.abs().max().item() if e.numel() else 1.0)
        bound = 2 * plain_error(p, e, m) + floor(case, dtype) * largest
        assert error(a, e) <= bound, f"{case} grad {name}: error {error(a, e):.3g} above {bound:.3g}"
    return actual
