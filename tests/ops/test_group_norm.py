"""What the case table does not say about group_norm: independence, memory, errors, compilation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dove_ext import ops


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(5, 64, 40, 40, generator=generator).contiguous(memory_format=torch.channels_last)
    return (
        x.to(dtype),
        torch.rand(64, generator=generator).to(dtype),
        torch.rand(64, generator=generator).to(dtype),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_do_not_depend_on_their_batch(dtype: torch.dtype) -> None:
    x, weight, bias = inputs(dtype)
    together = ops.group_norm(x, weight, bias)
    for image in range(5):
        assert torch.equal(ops.group_norm(x[image : image + 1], weight, bias)[0], together[image])


def test_results_are_channels_last_and_the_sum_is_what_was_normalised() -> None:
    x, weight, bias = inputs(torch.bfloat16)
    normed, summed = ops.group_norm(x, weight, bias, residual=x.flip(0).contiguous())
    assert torch.equal(summed, x + x.flip(0))
    assert torch.equal(normed, ops.group_norm(summed, weight, bias))
    for out in (normed, summed):
        assert out.is_contiguous(memory_format=torch.channels_last)


def test_compiles_without_graph_breaks() -> None:
    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        normed, summed = ops.group_norm(x, weight, bias, residual=x.relu())
        return normed * summed + ops.group_norm(x, weight, bias, silu=False, groups=4)

    def gradients(function: Any) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in inputs()]
        return [*torch.autograd.grad(function(*leaves).square().sum(), leaves)]

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(gradients(compiled), gradients(run), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"groups": 7}, ValueError, "groups must divide the 64 channels"),
        ({"x": torch.zeros(2, 64)}, ValueError, r"x must be \[B, C, H, W\]"),
        ({"weight": torch.zeros(63)}, ValueError, r"weight must be \[64\]"),
        ({"bias": torch.zeros(64, dtype=torch.float64)}, TypeError, "bias must be float32"),
        ({"residual": torch.zeros(5, 64, 40, 41)}, ValueError, "residual must be"),
        ({"residual": torch.zeros(5, 64, 40, 40, dtype=torch.bfloat16)}, ValueError, "residual must be"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], error: type[Exception], text: str) -> None:
    x, weight, bias = inputs()
    with pytest.raises(error, match=text):
        ops.group_norm(**{"x": x, "weight": weight, "bias": bias, **change})
