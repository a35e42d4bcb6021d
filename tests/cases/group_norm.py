"""Rows for group_norm."""

from __future__ import annotations

from functools import partial

import torch

from tests.cases.case import Case, Inputs


def _make(
    dtype: torch.dtype,
    *,
    shape: tuple[int, ...],
    groups: int,
    residual: bool = False,
    x_bias: float | None = None,
    silu: bool = True,
    offset: float = 0.0,
    layout: str = "channels_last",
    parameters: torch.dtype | None = None,
    eps: float = 1e-6,
) -> Inputs:
    generator = torch.Generator().manual_seed(sum(shape) + groups)
    channels = shape[1]

    def image() -> torch.Tensor:
        rows = torch.randn(shape[0], *shape[2:], channels, generator=generator) + offset
        values = rows.to(dtype).permute(0, -1, *range(1, len(shape) - 1))
        if layout == "contiguous":
            return values.contiguous()
        if layout == "slice":  # channels of a wider tensor: pixels are not neighbours in memory
            wide = torch.full((shape[0], *shape[2:], channels + 5), float("nan"), dtype=dtype)
            wide[..., 3 : 3 + channels] = values.permute(0, *range(2, len(shape)), 1)
            return wide.permute(0, -1, *range(1, len(shape) - 1))[:, 3 : 3 + channels]
        if layout == "column":  # of width 1, whose stride then means nothing
            return values.as_strided(values.shape, (*values.stride()[:3], 1))
        return values

    inputs: Inputs = {
        "x": image(),
        "weight": (1 + 0.2 * torch.randn(channels, generator=generator)).to(parameters or dtype),
        "bias": (0.2 * torch.randn(channels, generator=generator)).to(parameters or dtype),
        "groups": groups,
        "silu": silu,
        "eps": eps,
    }
    if residual:
        inputs["residual"] = image()
    if x_bias is not None:
        inputs["x_bias"] = (x_bias * torch.randn(channels, generator=generator)).to(parameters or dtype)
    return inputs


_ROWS: dict[str, Inputs] = {
    "one_value": {"shape": (1, 1, 1, 1), "groups": 1},
    "one_pixel": {"shape": (2, 64, 1, 1), "groups": 32},
    "no_images": {"shape": (0, 32, 4, 4), "groups": 32},
    "no_pixels": {"shape": (2, 32, 0, 3), "groups": 32},
    "31_pixels": {"shape": (3, 32, 31), "groups": 32},
    "257_pixels": {"shape": (2, 256, 257), "groups": 32},
    "odd_channels": {"shape": (2, 51, 5, 7), "groups": 3},
    "one_group": {"shape": (2, 24, 9, 9), "groups": 1},
    "many_chunks": {"shape": (3, 128, 33, 31), "groups": 32},
    "two_sets": {"shape": (3, 64, 112, 113), "groups": 32},  # images pass the caches in sets of 4 MiB
    "wide": {"shape": (1, 512, 16, 16), "groups": 32, "parameters": torch.float32},
    "no_silu": {"shape": (2, 64, 8, 8), "groups": 32, "silu": False},
    "large_mean": {"shape": (2, 64, 40, 40), "groups": 32, "offset": 300.0},
    "huge_mean": {"shape": (1, 64, 64, 64), "groups": 32, "offset": -30000.0, "silu": False},
    "contiguous": {"shape": (2, 64, 6, 5), "groups": 32, "layout": "contiguous"},
    "slice": {"shape": (2, 40, 6, 5), "groups": 8, "layout": "slice"},
    "column": {"shape": (2, 64, 9, 1), "groups": 32, "layout": "column"},
    "large_eps": {"shape": (2, 64, 6, 5), "groups": 32, "eps": 0.5},
}
_RESIDUAL = (
    "one_value",
    "no_images",
    "257_pixels",
    "odd_channels",
    "many_chunks",
    "two_sets",
    "no_silu",
    "large_mean",
    "contiguous",
    "slice",
    "column",
)
# Row: the deviation of the bias. A large one makes the channels of a group differ more than their pixels do.
_X_BIAS = {
    "one_value": 1.0,
    "no_images": 1.0,
    "257_pixels": 1.0,
    "odd_channels": 1.0,
    "many_chunks": 30.0,
    "wide": 1.0,
    "no_silu": 1.0,
    "large_mean": 1.0,
    "slice": 1.0,
}

CASES = [
    *(
        # Without a value in a group PyTorch's own gradients are NaN.
        Case(
            "group_norm",
            name,
            partial(_make, **row),
            grads=() if name == "no_pixels" else ("x", "weight", "bias"),
        )
        for name, row in _ROWS.items()
    ),
    *(
        Case(
            "group_norm",
            f"residual_{name}",
            partial(_make, **_ROWS[name], residual=True),
            grads=("x", "weight", "bias", "residual"),
        )
        for name in _RESIDUAL
    ),
    *(
        Case(
            "group_norm",
            f"bias_{name}",
            partial(_make, **_ROWS[name], x_bias=deviation),
            grads=("x", "weight", "bias", "x_bias"),
        )
        for name, deviation in _X_BIAS.items()
    ),
    *(
        Case(
            "group_norm",
            f"bias_residual_{name}",
            partial(_make, **_ROWS[name], x_bias=1.0, residual=True),
            grads=("x", "weight", "bias", "residual", "x_bias"),
        )
        for name in ("one_value", "odd_channels", "many_chunks", "wide")
    ),
]
