"""3x3 convolution with GroupNorm and SiLU before it and a residual sum behind it, in one pass over memory."""

from __future__ import annotations

import torch
from torch import Tensor

from dove_ext import _C
from dove_ext.ops import reference
from dove_ext.ops.backend import use_kernels
from dove_ext.ops.group_norm import statistics
from dove_ext.ops.library import call, register

CHANNELS = 32
"""Channels in and out must be multiples of this for the compiled kernel."""


def pack_conv3x3(weight: Tensor) -> Tensor:
    """Transform a convolution's weights once, for `conv3x3`.

    Args:
        weight: [C_out, C_in, 3, 3], float32 or bfloat16, on the CPU; both counts multiples of 32.

    Returns:
        Tensor: float32 [4 * C_out * C_in * 9], in an order that depends on this machine's instruction set.
        Not differentiable.

    Raises:
        ValueError: if the shape does not fit.
    """
    if (
        weight.dim() != 4
        or weight.shape[2:] != (3, 3)
        or weight.shape[0] % CHANNELS
        or weight.shape[1] % CHANNELS
    ):
        raise ValueError(
            f"pack_conv3x3: weight must be [C_out, C_in, 3, 3] with multiples of {CHANNELS} channels, "
            f"got {list(weight.shape)}"
        )
    channels_out, channels_in = weight.shape[:2]
    dense = weight.detach().float().contiguous(memory_format=torch.contiguous_format)
    packed = dense.new_empty(_C.cpu_conv3x3_packed_values(channels_in, channels_out))
    call(
        "cpu_conv3x3_pack", _C.Conv3x3PackArgs, dense, weight=dense, packed=packed, channels_in=channels_in,
        channels_out=channels_out,
    )  # fmt: skip
    return packed


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
    """conv(silu(group_norm(x)), weight) + bias + residual, with stride 1 and zero padding 1.

    The compiled kernel uses Winograd's F(4x4, 3x3) in float32 arithmetic, whatever the images are stored as:
    36 products where the definition has 144 (arXiv 1509.09308). In float32 that errs about five times what a
    direct float32 sum does (1e-6 of the result's size), in bfloat16 less than a direct convolution, whose
    normalised input is rounded. The result of an image depends neither on the rest of the batch nor on the
    number of threads. Inference only: no gradient.

    Args:
        x: [B, C_in, H, W], float32 or bfloat16; channels-last memory is used as it is, other memory copied.
        weight: [C_out, C_in, 3, 3].
        bias: [C_out].
        norm_weight: [C_in] of the normalisation, or None: the convolution reads `x` itself.
        norm_bias: [C_in], with `norm_weight`.
        groups: of the normalisation; divides C_in.
        eps: added to the variance.
        silu: SiLU behind the normalisation.
        residual: [B, C_out, H, W] in the dtype of `x`, added to the result.
        packed: `pack_conv3x3(weight)`; made anew in each call if None.

    Returns:
        Tensor: [B, C_out, H, W] in the dtype of `x` and channels-last memory.

    Raises:
        ValueError: if a shape does not fit, or the compiled kernel is to take channels that are no multiples
            of 32 (without `packed`), or `packed` is not what `pack_conv3x3` makes of such weights.
        TypeError: if the residual's dtype is not that of `x`.
    """
    _check(x, weight, bias, norm_weight, norm_bias, groups, residual)
    if packed is not None:
        _check_packed(packed, x, weight)
    if not use_kernels("conv3x3", x):
        return reference.conv3x3(
            x, weight, bias, norm_weight=norm_weight, norm_bias=norm_bias, groups=groups, eps=eps, silu=silu,
            residual=residual,
        )  # fmt: skip
    out: Tensor = torch.ops.dove.conv3x3(
        x, weight, packed, bias, norm_weight, norm_bias, groups, eps, silu, residual
    )
    return out


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    groups: int,
    residual: Tensor | None,
) -> None:
    if x.dim() != 4 or weight.dim() != 4 or weight.shape[1:] != (x.shape[1], 3, 3):
        raise ValueError(
            "conv3x3: x must be [B, C_in, H, W] and weight [C_out, C_in, 3, 3], "
            f"got {list(x.shape)} and {list(weight.shape)}"
        )
    for name, parameter, count in (
        ("bias", bias, weight.shape[0]),
        ("norm_weight", norm_weight, x.shape[1]),
        ("norm_bias", norm_bias, x.shape[1]),
    ):
        if parameter is not None and parameter.shape != (count,):
            raise ValueError(f"conv3x3: {name} must be [{count}], got {list(parameter.shape)}")
    if (norm_weight is None) != (norm_bias is None):
        raise ValueError("conv3x3: norm_weight and norm_bias go together; give both or neither")
    if norm_weight is not None and (groups < 1 or x.shape[1] % groups):
        raise ValueError(f"conv3x3: groups must divide the {x.shape[1]} channels of x, got {groups}")
    expected = (x.shape[0], weight.shape[0], *x.shape[2:])
    if residual is not None and residual.shape != expected:
        raise ValueError(f"conv3x3: residual must be {list(expected)}, got {list(residual.shape)}")
    if residual is not None and residual.dtype != x.dtype:
        raise TypeError(f"conv3x3: residual must be {x.dtype} like x, got {residual.dtype}")


def _check_packed(packed: Tensor, x: Tensor, weight: Tensor) -> None:
    values = 4 * weight.numel()
    if packed.dtype != torch.float32 or packed.shape != (values,) or not packed.is_contiguous():
        raise ValueError(
            f"conv3x3: packed must be dense float32 [{values}], as pack_conv3x3(weight) makes it, "
            f"got {packed.dtype} {list(packed.shape)}"
        )
    if packed.device != x.device:
        raise ValueError(f"conv3x3: packed must be on {x.device} like x, got {packed.device}")


def _empty(x: Tensor, channels: int) -> Tensor:
    return x.new_empty(x.shape[0], *x.shape[2:], channels).permute(0, 3, 1, 2)


def _cpu(
    x: Tensor,
    weight: Tensor,
    packed: Tensor | None,
    bias: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
    residual: Tensor | None,
) -> Tensor:
    channels_out, channels_in = weight.shape[:2]
    out = _empty(x, channels_out)
    if not out.numel():
        return out
    if packed is None:
        packed = pack_conv3x3(weight)
    rows = x.permute(0, 2, 3, 1)
    if rows.stride(3) != 1:
        rows = rows.contiguous()
    norm: dict[str, Tensor] = {}
    if norm_weight is not None and norm_bias is not None:
        mean, rstd = statistics(rows.permute(0, 3, 1, 2), groups, eps)
        norm = {
            "mean": mean,
            "rstd": rstd,
            "norm_weight": norm_weight.float().contiguous(),
            "norm_bias": norm_bias.float().contiguous(),
        }
    if residual is not None:
        residual = residual.contiguous(memory_format=torch.channels_last)
    call(
        "cpu_conv3x3", _C.Conv3x3Args, x, x=rows, x_stride_image=rows.stride(0),
        x_stride_row=rows.stride(1), x_stride_pixel=rows.stride(2), **norm, packed=packed,
        bias=bias.float().contiguous(), residual=residual, out=out, batch=x.shape[0],
        height=x.shape[2], width=x.shape[3],
        channels_in=channels_in, channels_out=channels_out, groups=groups, silu=silu, dtype=x.dtype,
    )  # fmt: skip
    return out


def _fake(x: Tensor, weight: Tensor, *_: object) -> Tensor:
    return _empty(x, weight.shape[0])


def _plain(
    x: Tensor,
    weight: Tensor,
    packed: Tensor | None,
    bias: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
    residual: Tensor | None,
) -> Tensor:
    out = reference.conv3x3(
        x, weight, bias, norm_weight=norm_weight, norm_bias=norm_bias, groups=groups, eps=eps, silu=silu,
        residual=residual,
    )  # fmt: skip
    return _empty(x, weight.shape[0]).copy_(out)


def _no_gradient(*_: object) -> None:
    raise RuntimeError(
        "conv3x3: the compiled kernel is for inference, it has no gradient; use F.conv2d for training, or "
        "call dove_ext.set_backend('torch') before the forward pass"
    )


register(
    "conv3x3(Tensor x, Tensor weight, Tensor? packed, Tensor bias, Tensor? norm_weight, Tensor? norm_bias, "
    "int groups, float eps, bool silu, Tensor? residual) -> Tensor",
    cpu=_cpu,
    fake=_fake,
    reference=_plain,
    setup_context=lambda ctx, inputs, output: None,
    backward=_no_gradient,
)
