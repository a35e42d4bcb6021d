"""The gradients of `dove_ext.ops.group_norm`: dove::group_norm_backward, the operator that autograd calls."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from dove_ext import _C
from dove_ext.ops.group_norm import _empty_like, _parameters, _pixel_rows
from dove_ext.ops.library import call, register


def _run(
    device: str, grad: Tensor, grad_summed: Tensor | None, x: Tensor, mean: Tensor, rstd: Tensor,
    weight: Tensor, bias: Tensor, x_bias: Tensor | None, added: bool, silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    grad_x = _empty_like(x)
    new = x.new_empty if x.numel() else x.new_zeros
    grad_weight, grad_bias = (new(x.shape[1], dtype=torch.float32) for _ in range(2))
    grad_x_bias = None if x_bias is None else new(x.shape[1], dtype=torch.float32)
    if x.numel():
        grad_rows, grad_image, grad_pixel = _pixel_rows(grad)
        rows, x_image, x_pixel = _pixel_rows(x)
        direct, direct_image, direct_pixel = (None, 0, 0) if grad_summed is None else _pixel_rows(grad_summed)
        weights, biases, pending = _parameters(device, weight, bias, None if added else x_bias)
        call(
            f"{device}_group_norm_backward", _C.GroupNormGradArgs, x, grad=grad_rows,
            grad_stride_image=grad_image, grad_stride_pixel=grad_pixel, summed=rows,
            summed_stride_image=x_image, summed_stride_pixel=x_pixel, grad_summed=direct,
            grad_summed_stride_image=direct_image, grad_summed_stride_pixel=direct_pixel, x_bias=pending,
            weight=weights, bias=biases, mean=mean.contiguous(), rstd=rstd.contiguous(), grad_x=grad_x,
            grad_weight=grad_weight, grad_bias=grad_bias, grad_x_bias=grad_x_bias, batch=x.shape[0],
            pixels=x[0, 0].numel(), channels=x.shape[1], groups=mean.shape[1], silu=silu, dtype=x.dtype,
            parameters=weights.dtype,
        )  # fmt: skip
    return grad_x, grad_weight.to(weight.dtype), grad_bias.to(bias.dtype), _or_nothing(x, x_bias, grad_x_bias)


def _or_nothing(x: Tensor, x_bias: Tensor | None, gradient: Tensor | None) -> Tensor:
    """The gradient in the dtype of `x_bias`; [0] where there is no such bias, since an op returns tensors."""
    return x.new_empty(0) if x_bias is None or gradient is None else gradient.to(x_bias.dtype)


def _fake(
    grad: Tensor, grad_summed: Tensor | None, x: Tensor, mean: Tensor, rstd: Tensor,
    weight: Tensor, bias: Tensor, x_bias: Tensor | None, added: bool, silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    grad_x_bias = x.new_empty(0) if x_bias is None else x_bias.new_empty(x_bias.shape)
    return _empty_like(x), weight.new_empty(weight.shape), bias.new_empty(bias.shape), grad_x_bias


def _plain(
    grad: Tensor, grad_summed: Tensor | None, x: Tensor, mean: Tensor, rstd: Tensor,
    weight: Tensor, bias: Tensor, x_bias: Tensor | None, added: bool, silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The formulas of csrc/include/dove/group_norm.h in float32, z being the normalised values."""
    groups = mean.shape[1]

    def grouped(t: Tensor) -> Tensor:  # [B, G, C / G, pixels]
        return t.float().reshape(t.shape[0], groups, t.shape[1] // groups, *t.shape[2:]).flatten(3)

    def per_channel(t: Tensor) -> Tensor:  # [G, C / G, 1]
        return t.float().reshape(groups, -1, 1)

    z = grouped(x) - mean[..., None, None]
    if x_bias is not None and not added:
        z = z + per_channel(x_bias)
    z = z * rstd[..., None, None]
    dy = grouped(grad)
    if silu:
        y = z * per_channel(weight) + per_channel(bias)
        s = torch.sigmoid(y)
        dy = dy * s * (1 + y * (1 - s))
    grad_weight = (dy * z).sum((0, 3)).flatten()
    grad_bias = dy.sum((0, 3)).flatten()
    dz = dy * per_channel(weight)
    dx = rstd[..., None, None] * (
        dz - dz.mean((2, 3), keepdim=True) - z * (dz * z).mean((2, 3), keepdim=True)
    )
    grad_x = dx.reshape(x.shape) if grad_summed is None else dx.reshape(x.shape) + grad_summed
    grad_x_bias = _or_nothing(x, x_bias, grad_x.sum((0, *range(2, x.dim()))))
    return _empty_like(x).copy_(grad_x), grad_weight.to(weight.dtype), grad_bias.to(bias.dtype), grad_x_bias


register(
    "group_norm_backward(Tensor grad, Tensor? grad_summed, Tensor x, Tensor mean, Tensor rstd, "
    "Tensor weight, Tensor bias, Tensor? x_bias, bool added, bool silu) "
    "-> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias, Tensor grad_x_bias)",
    cpu=partial(_run, "cpu"),
    cuda=partial(_run, "cuda"),
    fake=_fake,
    reference=_plain,
)
