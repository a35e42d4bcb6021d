"""What the case table does not say about residual_sum: memory, rounding, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dove_ext import ops


def test_results_are_channels_last_and_rounded_once() -> None:
    x, residual = torch.full((2, 1, 8, 3, 4), 256.0, dtype=torch.bfloat16)  # 1 apart from 256: lost at once
    bias = torch.full((8,), -255.0)
    out = ops.residual_sum(x, residual / 256, bias, pad=1)
    assert out.shape == (1, 8, 4, 5) and out.is_contiguous(memory_format=torch.channels_last)
    assert (out[:, :, :3, :4] == 2).all()
    assert (out[:, :, 3] == 0).all() and (out[:, :, :, 4] == 0).all()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": torch.zeros(8, 3, 4)}, ValueError, r"x must be \[B, C, H, W\]"),
        ({"residual": torch.zeros(1, 8, 4, 3)}, ValueError, r"residual must be \[1, 8, 3, 4\]"),
        ({"residual": torch.zeros(1, 8, 3, 4).bfloat16()}, TypeError, "residual must be torch.float32"),
        ({"bias": torch.zeros(7)}, ValueError, r"bias must be \[8\]"),
        ({"bias": torch.zeros(8).double()}, TypeError, "bias must be float32"),
        ({"pad": -1}, ValueError, "pad must be at least 0"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        ops.residual_sum(**{"x": torch.zeros(1, 8, 3, 4), **change})
