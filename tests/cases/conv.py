"""Rows for conv3x3."""

from __future__ import annotations

from functools import partial

import torch

from tests.cases.case import Case, Inputs


def _make(
    dtype: torch.dtype,
    *,
    shape: tuple[int, int, int, int],
    channels_out: int = 32,
    norm: bool = True,
    residual: bool = True,
    silu: bool = True,
    offset: float = 0.0,
    layout: str = "channels_last",
    parameters: torch.dtype | None = None,
) -> Inputs:
    generator = torch.Generator().manual_seed(sum(shape) + channels_out)
    batch, channels, height, width = shape

    def image(count: int) -> torch.Tensor:
        values = torch.randn(batch, height, width, count, generator=generator).to(dtype).permute(0, 3, 1, 2)
        if layout == "contiguous":
            return values.contiguous()
        if layout == "slice":  # a window of a larger image: rows and pixels are not neighbours in memory
            larger = torch.full((batch, height + 2, width + 3, count + 5), float("nan"), dtype=dtype)
            larger[:, 1:-1, 2:-1, 3 : 3 + count] = values.permute(0, 2, 3, 1)
            return larger.permute(0, 3, 1, 2)[:, 3 : 3 + count, 1:-1, 2:-1]
        if layout == "column":  # of width 1, whose stride then means nothing
            return values.as_strided(values.shape, (*values.stride()[:3], 1))
        return values

    def vector(count: int, around: float) -> torch.Tensor:
        return (around + 0.2 * torch.randn(count, generator=generator)).to(parameters or dtype)

    inputs: Inputs = {
        "x": (image(channels) + offset).to(dtype),
        "weight": (torch.randn(channels_out, channels, 3, 3, generator=generator) / (9 * channels) ** 0.5).to(
            dtype
        ),
        "bias": vector(channels_out, 0),
        "silu": silu,
    }
    if norm:
        inputs |= {"norm_weight": vector(channels, 1), "norm_bias": vector(channels, 0), "groups": 32}
    if residual:
        inputs["residual"] = image(channels_out)
    return inputs


_ROWS: dict[str, Inputs] = {
    "no_images": {"shape": (0, 32, 4, 4)},
    "one_pixel": {"shape": (2, 64, 1, 1)},
    "one_row": {"shape": (1, 32, 1, 37), "norm": False},
    "one_tile": {"shape": (1, 64, 4, 4)},
    "odd_sides": {"shape": (2, 64, 17, 23), "channels_out": 64},
    "one_beyond_a_square": {"shape": (1, 32, 33, 33), "norm": False},
    "squares_of_several_images": {"shape": (9, 64, 6, 13), "channels_out": 96},
    "many_tasks": {"shape": (2, 32, 70, 65), "norm": False, "residual": False},
    "wide": {"shape": (1, 512, 16, 16), "channels_out": 64, "parameters": torch.float32},
    "widening": {"shape": (1, 64, 9, 8), "channels_out": 160, "residual": False},
    "no_silu": {"shape": (2, 64, 8, 8), "silu": False},
    "large_mean": {"shape": (1, 64, 20, 20), "offset": 300.0},
    "contiguous": {"shape": (2, 64, 6, 5), "layout": "contiguous"},
    "slice": {"shape": (2, 64, 6, 5), "layout": "slice"},
    "column": {"shape": (2, 64, 9, 1), "layout": "column"},
}

# Winograd's sums err about five times what direct float32 sums of the same values do, which are of size one.
CASES = [
    Case("conv3x3", name, partial(_make, **row), floor={torch.float32: 1e-5, torch.bfloat16: 1e-3})
    for name, row in _ROWS.items()
]
