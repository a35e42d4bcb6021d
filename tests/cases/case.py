"""What a row of the case table is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One row: `getattr(dove_ext.ops, op)(**make(dtype))` against the reference of the same name.

    Fields:
        op: name of the function in `dove_ext.ops` and in `dove_ext.ops.reference`.
        label: what the row stresses, as it appears in the test id.
        make: builds the keyword arguments for a dtype; the same values on every call.
        grads: names of the inputs whose gradients are compared (empty: no gradient).
        exact: results must be bit-equal to the reference (moves, integers), not within tolerance.
        floor: absolute error that is always allowed, per dtype.
        valid: maps (inputs, output index, output) to the part of the output that is defined.
    """

    op: str
    label: str
    make: Callable[[torch.dtype], Inputs]
    grads: tuple[str, ...] = ()
    exact: bool = False
    floor: dict[torch.dtype, float] = field(
        default_factory=lambda: {torch.float32: 1e-6, torch.bfloat16: 1e-3}
    )
    valid: Callable[[Inputs, int, Tensor], Tensor] = lambda inputs, index, output: output

    def __str__(self) -> str:
        return f"{self.op}-{self.label}"


def cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """The same inputs with every floating tensor in another dtype (float64 for the oracle)."""
    return {
        name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }
