"""Each op in plain PyTorch: the oracle of the tests (in float64) and the path for other devices.

Written for clarity: what the formula says, in the order it says it, in any floating dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dove_ext.ops.attention_reference import attention as attention
from dove_ext.ops.backend import without_autocast


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


def lengths_to_cu_seqlens(lengths: Tensor) -> Tensor:
    """0 and the running sum of `lengths`; see `dove_ext.ops.lengths_to_cu_seqlens`."""
    return torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))


def add_bias(x: Tensor, bias: Tensor | None) -> Tensor:
    """`x` [B, C, ...] with bias [C] added to each pixel."""
    return x if bias is None else x + bias.to(x.dtype).reshape(-1, *[1] * (x.dim() - 2))


def group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    groups: int = 32,
    eps: float = 1e-6,
    silu: bool = True,
    residual: Tensor | None = None,
    x_bias: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """silu(GroupNorm(x + residual + x_bias)), with a residual also the sum; see `dove_ext.ops.group_norm`."""
    summed = add_bias(x if residual is None else x + residual, x_bias)
    if summed.shape[0] and not summed.numel():
        normed = summed.clone()  # PyTorch refuses images without pixels from 2.15 on
    else:
        normed = torch.group_norm(summed, groups, weight.to(x.dtype), bias.to(x.dtype), eps)
    if silu:
        normed = torch.nn.functional.silu(normed)
    return normed if residual is None else (normed, summed)


def residual_sum(
    x: Tensor, residual: Tensor | None = None, bias: Tensor | None = None, *, pad: int = 0
) -> Tensor:
    """X + residual + bias, then zeros below and to the right; see `dove_ext.ops.residual_sum`."""
    return torch.nn.functional.pad(add_bias(x if residual is None else x + residual, bias), (0, pad, 0, pad))


def pair_norm(
    x: Tensor, weight_a: Tensor, bias_a: Tensor, weight_b: Tensor, bias_b: Tensor, *, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Two LayerNorms of one x; see `dove_ext.ops.pair_norm`."""
    first, second = (
        torch.nn.functional.layer_norm(x, x.shape[-1:], weight.to(x.dtype), bias.to(x.dtype), eps)
        for weight, bias in ((weight_a, bias_a), (weight_b, bias_b))
    )
    return first, second


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """gelu(x + bias); see `dove_ext.ops.bias_gelu`."""
    return torch.nn.functional.gelu(x + bias.to(x.dtype))


def add_branches(x: Tensor, a: Tensor, b: Tensor, bias_a: Tensor, bias_b: Tensor) -> Tensor:
    """The sum x + (a + bias_a) + (b + bias_b); see `dove_ext.ops.add_branches`."""
    return x + (a + bias_a.to(x.dtype)) + (b + bias_b.to(x.dtype))


def zero_tail(tokens: Tensor, lengths: Tensor) -> Tensor:
    """`tokens` with zeros from each length on; see `dove_ext.ops.zero_tail`."""
    keep = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
    return torch.where(keep[:, :, None], tokens, torch.zeros_like(tokens))


def eos_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[B, K, V] logits, in float32 or, for float64, in float64; under autocast, too."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    with without_autocast(hidden.device.type):
        logits = hidden.to(wide) @ weight.to(wide).T
    return logits if bias is None else logits + bias.to(wide)


def eos_scan(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    eos_id: int = 0,
    witness: Tensor | None = None,
) -> Tensor:
    """First position whose arg-max is EOS, or K; see `dove_ext.ops.eos_scan`."""
    logits = eos_logits(hidden, weight, bias)
    ends = (logits.argmax(-1) == eos_id) & ~logits.isnan().any(-1)
    # With a last position at which every image ends, the first True always exists.
    ends = torch.cat([ends, ends.new_ones(ends.shape[0], 1)], dim=1)
    return ends.int().argmax(1).int()


def eos_probability(hidden: Tensor, weight: Tensor, bias: Tensor | None = None, *, eos_id: int = 0) -> Tensor:
    """Softmax entry of EOS; see `dove_ext.ops.eos_probability`."""
    return eos_logits(hidden, weight, bias).softmax(-1)[..., eos_id]


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    groups: int = 32,
    eps: float = 1e-6,
    silu: bool = True,
    residual: Tensor | None = None,
    packed: Tensor | None = None,
) -> Tensor:
    """Normalise, SiLU, convolve, add; see `dove_ext.ops.conv3x3`."""
    if norm_weight is not None and norm_bias is not None:
        normed = group_norm(x, norm_weight, norm_bias, groups=groups, eps=eps, silu=silu)
        assert isinstance(normed, Tensor)  # a pair only with a residual
        x = normed
    out = torch.nn.functional.conv2d(x, weight.to(x.dtype), bias.to(x.dtype), padding=1)
    return out if residual is None else out + residual
