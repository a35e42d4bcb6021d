"""The gradients of `dove_ext.ops.group_norm`: dove::group_norm_backward, the operator that autograd calls."""

from __future__ import annotations

import torch
from torch import Tensor

from dove_ext import _C
from dove_ext.ops.group_norm import _empty_like, _parameters, _pixel_rows
from dove_ext.ops.library import DTYPE_CODE, register, stream_of


def _image(rows: tuple[Tensor, int, int] | None) -> tuple[int, int, int]:
    """(address, stride between images, stride between pixels) of what `_pixel_rows` gave."""
    return (0, 0, 0) if rows is None else (rows[0].data_ptr(), *rows[1:])


def _cpu(
    grad: Tensor, grad_summed: Tensor | None, x: Tensor, mean: Tensor, rstd: Tensor,
    weight: Tensor, bias: Tensor, silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    batch, channels = x.shape[:2]
    grad_x = _empty_like(x)
    grad_weight = x.new_zeros(channels, dtype=torch.float32)
    grad_bias = torch.zeros_like(grad_weight)
    if x.numel():
        pixels = x[0, 0].numel()
        # Rows that had to be copied, and parameters that had to be cast, live until the kernel is done.
        grad_rows, x_rows = _pixel_rows(grad), _pixel_rows(x)
        summed_rows = None if grad_summed is None else _pixel_rows(grad_summed)
        weights, biases = weight.float().contiguous(), bias.float().contiguous()
        mean, rstd = mean.contiguous(), rstd.contiguous()
        workspace_bytes = _C.cpu_group_norm_backward_workspace(batch, pixels, channels)
        workspace = x.new_empty(workspace_bytes, dtype=torch.uint8)
        _C.cpu_group_norm_backward(
            _image(grad_rows), _image(summed_rows), _image(x_rows), weights.data_ptr(), biases.data_ptr(),
            mean.data_ptr(), rstd.data_ptr(), grad_x.data_ptr(), grad_weight.data_ptr(), grad_bias.data_ptr(),
            workspace.data_ptr(), workspace_bytes, batch, pixels, channels, mean.shape[1], silu,
            DTYPE_CODE[x.dtype], torch.get_num_threads(),
        )  # fmt: skip
    return grad_x, grad_weight.to(weight.dtype), grad_bias.to(bias.dtype)


def _cuda(
    grad: Tensor, grad_summed: Tensor | None, x: Tensor, mean: Tensor, rstd: Tensor,
    weight: Tensor, bias: Tensor, silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    batch, channels, groups = *x.shape[:2], mean.shape[1]
    if not x.numel():
        return _empty_like(x), torch.zeros_like(weight), torch.zeros_like(bias)
    pixels = x[0, 0].numel()
    dx = _empty_like(x)
    grad_weight = x.new_empty(channels, dtype=torch.float32)
    grad_bias = torch.empty_like(grad_weight)
    grad_rows, grad_image, grad_pixel = _pixel_rows(grad)
    rows, x_image, x_pixel = _pixel_rows(x)
    direct, direct_image, direct_pixel = (None, 0, 0) if grad_summed is None else _pixel_rows(grad_summed)
    weight, bias, parameters = _parameters(x, weight, bias)
    size = _C.cuda_group_norm_workspace(batch, pixels, channels, groups)
    workspace = x.new_empty(size, dtype=torch.uint8)
    _C.cuda_group_norm_backward(
        grad_rows.data_ptr(), rows.data_ptr(), 0 if direct is None else direct.data_ptr(), weight.data_ptr(),
        bias.data_ptr(), mean.data_ptr(), rstd.data_ptr(), dx.data_ptr(), grad_weight.data_ptr(),
        grad_bias.data_ptr(), workspace.data_ptr(), size, batch, pixels, channels, groups, grad_image,
        grad_pixel, x_image, x_pixel, direct_image, direct_pixel, silu, DTYPE_CODE[x.dtype], parameters,
        stream_of(x),
    )  # fmt: skip
    return dx, grad_weight.to(weight.dtype), grad_bias.to(bias.dtype)


def _fake(
    grad: Tensor, grad_summed: Tensor | None, x: Tensor, mean: Tensor, rstd: Tensor,
    weight: Tensor, bias: Tensor, silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _empty_like(x), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _plain(
    grad: Tensor, grad_summed: Tensor | None, x: Tensor, mean: Tensor, rstd: Tensor,
    weight: Tensor, bias: Tensor, silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The formulas of csrc/include/dove/group_norm.h in float32, z being the normalised values."""
    groups = mean.shape[1]

    def grouped(t: Tensor) -> Tensor:  # [B, G, C / G, pixels]
        return t.float().reshape(t.shape[0], groups, t.shape[1] // groups, *t.shape[2:]).flatten(3)

    def per_channel(t: Tensor) -> Tensor:  # [G, C / G, 1]
        return t.float().reshape(groups, -1, 1)

    z = (grouped(x) - mean[..., None, None]) * rstd[..., None, None]
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
    return _empty_like(x).copy_(grad_x), grad_weight.to(weight.dtype), grad_bias.to(bias.dtype)


register(
    "group_norm_backward(Tensor grad, Tensor? grad_summed, Tensor x, Tensor mean, Tensor rstd, "
    "Tensor weight, Tensor bias, bool silu) -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)",
    cpu=_cpu,
    cuda=_cuda,
    fake=_fake,
    reference=_plain,
)
