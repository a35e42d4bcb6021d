"""The sum that ends a residual branch, with a bias and the zeros that a strided convolution wants."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dove_ext import _C
from dove_ext.ops import reference
from dove_ext.ops.backend import use_kernels
from dove_ext.ops.library import call, register


def residual_sum(
    x: Tensor, residual: Tensor | None = None, bias: Tensor | None = None, *, pad: int = 0
) -> Tensor:
    """X + residual + bias in one pass, with zeros below and to the right of it, rounded once.

    (The residual blocks of the VQGAN and the asymmetric padding before its strided convolutions: arXiv
    2012.09841.)

    Args:
        x: [B, C, H, W], float32 or bfloat16 (on CUDA also float16). Channels-last memory is used as it is,
            other memory is copied into it first.
        residual: as `x`, in the same dtype.
        bias: [C], float32 or the dtype of `x`; added to each pixel.
        pad: how many rows of zeros to put below and how many columns to the right, at least 0.

    Returns:
        Tensor: [B, C, H + pad, W + pad] in the dtype of `x` and channels-last memory. Differentiable in all
        tensors.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if the dtypes do not fit.
    """
    if x.dim() != 4 or x.shape[1] < 1:
        raise ValueError(
            f"residual_sum: x must be [B, C, H, W] with at least one channel, got {list(x.shape)}"
        )
    if pad < 0:
        raise ValueError(f"residual_sum: pad must be at least 0, got {pad}")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"residual_sum: residual must be {list(x.shape)} like x, got {list(residual.shape)}")
    if residual is not None and residual.dtype != x.dtype:
        raise TypeError(f"residual_sum: residual must be {x.dtype} like x, got {residual.dtype}")
    if bias is not None and bias.shape != x.shape[1:2]:
        raise ValueError(f"residual_sum: bias must be [{x.shape[1]}], got {list(bias.shape)}")
    if bias is not None and bias.dtype not in (torch.float32, x.dtype):
        raise TypeError(f"residual_sum: bias must be float32 or {x.dtype}, got {bias.dtype}")
    if not use_kernels("residual_sum", x):
        return reference.residual_sum(x, residual, bias, pad=pad)
    out: Tensor = torch.ops.dove.residual_sum(x, residual, bias, pad)
    return out


def _fake(x: Tensor, residual: Tensor | None, bias: Tensor | None, pad: int) -> Tensor:
    out = x.new_empty(x.shape[0], x.shape[2] + pad, x.shape[3] + pad, x.shape[1])
    return out.permute(0, 3, 1, 2)


def _plain(x: Tensor, residual: Tensor | None, bias: Tensor | None, pad: int) -> Tensor:
    wide = x.float() if residual is None else x.float() + residual.float()
    return _fake(x, residual, bias, pad).copy_(reference.residual_sum(wide, None, bias, pad=pad))


def _rows(x: Tensor) -> Tensor:
    """`x` as [B, H, W, C] with dense channels."""
    rows = x.permute(0, 2, 3, 1)
    return rows if x.shape[1] == 1 or rows.stride(3) == 1 else rows.contiguous()


def _cuda(x: Tensor, residual: Tensor | None, bias: Tensor | None, pad: int) -> Tensor:
    out = _fake(x, residual, bias, pad)
    rows, added = _rows(x), None if residual is None else _rows(residual)
    bias = None if bias is None else bias.contiguous()
    image, row, pixel = (0, 0, 0) if added is None else added.stride()[:3]
    call(
        "cuda_residual_sum", _C.ResidualSumArgs, x, x=rows, x_stride_image=rows.stride(0),
        x_stride_row=rows.stride(1), x_stride_pixel=rows.stride(2), residual=added,
        residual_stride_image=image, residual_stride_row=row, residual_stride_pixel=pixel, bias=bias, out=out,
        batch=x.shape[0], height=x.shape[2], width=x.shape[3], channels=x.shape[1], pad=pad, dtype=x.dtype,
        parameters=x.dtype if bias is None else bias.dtype,
    )  # fmt: skip
    return out


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, residual, bias, _ = inputs
    ctx.size, ctx.has_residual = x.shape[2:], residual is not None
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    height, width = ctx.size
    inner = grad[:, :, :height, :width]
    grad_bias = None
    if ctx.bias_dtype is not None and ctx.needs_input_grad[2]:
        grad_bias = inner.sum((0, 2, 3), dtype=torch.float32).to(ctx.bias_dtype)
    return inner, inner if ctx.has_residual else None, grad_bias, None


register(
    "residual_sum(Tensor x, Tensor? residual, Tensor? bias, int pad) -> Tensor",
    cpu=_plain,
    cuda=_cuda,
    fake=_fake,
    reference=_plain,
    setup_context=_setup,
    backward=_backward,
)
