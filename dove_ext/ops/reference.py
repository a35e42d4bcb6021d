"""Each op in plain PyTorch: the oracle of the tests (in float64) and the path for other devices.

Written for clarity: what the formula says, in the order it says it, in any floating dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dove_ext.ops.attention_reference import attention as attention


def pack(padded: Tensor, cu_seqlens: Tensor, total: int | None = None) -> Tensor:
    """Rows `padded[b, :lengths[b]]` one after the other; see `dove_ext.ops.pack`."""
    lengths = cu_seqlens.diff()
    keep = torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]
    return padded[keep]


def unpack(packed: Tensor, cu_seqlens: Tensor, max_len: int) -> Tensor:
    """The inverse of `pack`, with zeros behind each length; see `dove_ext.ops.unpack`."""
    lengths = cu_seqlens.diff()
    keep = torch.arange(max_len, device=packed.device) < lengths[:, None]
    padded = packed.new_zeros(lengths.shape[0], max_len, packed.shape[1])
    padded[keep] = packed
    return padded


def group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    groups: int = 32,
    eps: float = 1e-6,
    silu: bool = True,
    residual: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """silu(GroupNorm(x + residual)), and the sum if there is one; see `dove_ext.ops.group_norm`."""
    summed = x if residual is None else x + residual
    normed = torch.group_norm(summed, groups, weight.to(x.dtype), bias.to(x.dtype), eps)
    if silu:
        normed = torch.nn.functional.silu(normed)
    return normed if residual is None else (normed, summed)
