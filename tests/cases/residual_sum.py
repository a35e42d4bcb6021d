"""Rows for residual_sum."""

from __future__ import annotations

from functools import partial

import torch

from tests.cases.case import Case, Inputs


def _make(
    dtype: torch.dtype,
    *,
    shape: tuple[int, ...],
    parts: str = "residual bias",
    pad: int = 0,
    layout: str = "channels_last",
    parameters: torch.dtype | None = None,
) -> Inputs:
    generator = torch.Generator().manual_seed(sum(shape) + pad)
    batch, channels, height, width = shape

    def image(layout: str) -> torch.Tensor:
        values = torch.randn(batch, height, width, channels, generator=generator).to(dtype)
        if layout == "contiguous":
            return values.permute(0, 3, 1, 2).contiguous()
        if layout == "slice":  # neither channels, pixels nor rows are neighbours of the next ones in memory
            wide = torch.full((batch, height + 1, width + 2, channels + 5), float("nan"), dtype=dtype)
            wide[:, :height, :width, 3 : 3 + channels] = values
            return wide.permute(0, 3, 1, 2)[:, 3 : 3 + channels, :height, :width]
        return values.permute(0, 3, 1, 2)

    inputs: Inputs = {"x": image("channels_last" if layout == "mixed" else layout), "pad": pad}
    if "residual" in parts:
        inputs["residual"] = image("slice" if layout == "mixed" else layout)
    if "bias" in parts:
        inputs["bias"] = torch.randn(channels, generator=generator).to(parameters or dtype)
    return inputs


_ROWS: dict[str, Inputs] = {
    "one_value": {"shape": (1, 1, 1, 1)},
    "no_images": {"shape": (0, 8, 4, 4), "pad": 1},
    "no_pixels": {"shape": (2, 8, 0, 3), "pad": 1},
    "odd": {"shape": (3, 51, 5, 7), "pad": 1},
    "packets": {"shape": (2, 32, 6, 4), "pad": 1},
    "wide": {"shape": (1, 512, 3, 9), "pad": 1, "parameters": torch.float32},
    "pad_2": {"shape": (2, 16, 3, 2), "pad": 2},
    "pad_only": {"shape": (2, 16, 4, 6), "pad": 1, "parts": ""},
    "bias_only": {"shape": (2, 24, 4, 6), "parts": "bias"},
    "residual_only": {"shape": (2, 24, 4, 6), "parts": "residual", "pad": 1},
    "contiguous": {"shape": (2, 16, 4, 6), "pad": 1, "layout": "contiguous"},
    "slice": {"shape": (2, 16, 4, 6), "pad": 1, "layout": "slice"},
    "mixed": {"shape": (2, 16, 4, 6), "pad": 1, "layout": "mixed"},
}

CASES = [
    Case(
        "residual_sum",
        name,
        partial(_make, **row),
        grads=("x", *str(row.get("parts", "residual bias")).split()),
    )
    for name, row in _ROWS.items()
]
