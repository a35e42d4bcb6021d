"""What the case table does not say about the ops of a block: errors, compilation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dove_ext import ops


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    wide = {name: torch.randn(2, 5, 24, generator=generator) for name in ("x", "a", "b")}
    names = ("weight_a", "bias_a", "weight_b", "bias_b")
    return wide | {name: torch.randn(24, generator=generator) for name in names}


def call(op: str, given: dict[str, Any]) -> Any:
    names = {
        "pair_norm": ("x", "weight_a", "bias_a", "weight_b", "bias_b"),
        "bias_gelu": ("x", "bias_a"),
        "add_branches": ("x", "a", "b", "bias_a", "bias_b"),
    }[op]
    return getattr(ops, op)(*(given[name] for name in names))


def test_compiles_without_graph_breaks() -> None:
    def run(**given: Tensor) -> Tensor:
        first, second = call("pair_norm", given)
        return call("add_branches", given | {"a": first, "b": call("bias_gelu", given | {"x": second})})

    def gradients(function: Any) -> list[Tensor]:
        leaves = {name: t.clone().requires_grad_() for name, t in tensors().items() if name not in "ab"}
        return [*torch.autograd.grad(function(**leaves).square().sum(), list(leaves.values()))]

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(gradients(compiled), gradients(run), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    ("op", "change", "error", "text"),
    [
        ("pair_norm", {"x": torch.zeros(2, 0)}, ValueError, "D at least 1"),
        ("pair_norm", {"weight_b": torch.zeros(23)}, ValueError, r"weight_b must be \[24\], got \[23\]"),
        ("bias_gelu", {"bias_a": torch.zeros(24).double()}, TypeError, "bias must be float32"),
        ("add_branches", {"b": torch.zeros(2, 5, 23)}, ValueError, r"b must be \[2, 5, 24\] like x"),
        (
            "add_branches",
            {"a": torch.zeros(2, 5, 24).bfloat16()},
            TypeError,
            "a must be torch.float32 like x",
        ),
    ],
)
def test_wrong_arguments(op: str, change: dict[str, Tensor], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call(op, tensors() | change)
