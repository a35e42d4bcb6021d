"""The gradients of `dove_ext.ops.group_norm`: dove::group_norm_backward, the operator that autograd calls."""

from __future__ import annotations

import torch
from torch import Tensor

from dove_ext import _C
from dove_ext.ops._library import DTYPE_CODE, register
from dove_ext.ops.group_norm import _empty_like, _pixel_rows


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
    fake=_fake,
    reference=_plain,
)
