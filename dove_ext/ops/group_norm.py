"""GroupNorm with SiLU behind it and a residual sum before it, for images in channels-last memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dove_ext import _C
from dove_ext.ops import reference
from dove_ext.ops.backend import use_kernels
from dove_ext.ops.library import DTYPE_CODE, register, stream_of


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
    """Normalise groups of neighbouring channels to mean 0 and variance 1, scale, shift, and apply SiLU.

    With a residual, `summed = x + residual` is made in the pass that takes the statistics. Statistics are
    float32 in every dtype and survive a mean much larger than the deviation. The result of an image depends
    neither on the rest of the batch nor on the number of threads. (GroupNorm and SiLU of the VQGAN's residual
    blocks: arXiv 2012.09841, section 3.)

    Args:
        x: [B, C, H, W] or [B, C, N], float32 or bfloat16 (float16 on CUDA, and on the CPU under
            autocast, where plain PyTorch computes it). Channels-last memory (C
            values of a pixel dense) is used as it is, other memory is copied into it first, as by
            `x.contiguous(memory_format=torch.channels_last)`.
        weight: [C], float32 or the dtype of `x`.
        bias: [C], as `weight`.
        groups: how many groups; divides C.
        eps: added to the variance.
        silu: apply y * sigmoid(y) at the end.
        residual: as `x`, in the same dtype.

    Returns:
        Tensor: shape and dtype of `x`, in channels-last memory; with a residual (normed, summed), both so.
        Differentiable in `x`, `weight`, `bias` and `residual`.

    Raises:
        ValueError: if a shape does not fit, or `groups` does not divide C.
        TypeError: if the dtypes do not fit.
    """
    if x.dim() not in (3, 4):
        raise ValueError(f"group_norm: x must be [B, C, H, W] or [B, C, N], got {list(x.shape)}")
    channels = x.shape[1]
    if groups < 1 or channels % groups:
        raise ValueError(f"group_norm: groups must divide the {channels} channels of x, got {groups}")
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter.shape != (channels,):
            raise ValueError(f"group_norm: {name} must be [{channels}], got {list(parameter.shape)}")
        if parameter.dtype not in (torch.float32, x.dtype):
            raise TypeError(f"group_norm: {name} must be float32 or {x.dtype}, got {parameter.dtype}")
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise ValueError(
            f"group_norm: residual must be {list(x.shape)} of {x.dtype} like x, "
            f"got {list(residual.shape)} of {residual.dtype}"
        )
    if not use_kernels("group_norm", x):
        return reference.group_norm(x, weight, bias, groups=groups, eps=eps, silu=silu, residual=residual)
    if residual is None:
        return torch.ops.dove.group_norm(x, weight, bias, groups, eps, silu)[0]  # type: ignore[no-any-return]
    normed, summed, _, _ = torch.ops.dove.add_group_norm(x, residual, weight, bias, groups, eps, silu)
    return normed, summed


def _empty_like(x: Tensor) -> Tensor:
    """Uninitialised, in the shape of `x` and in channels-last memory."""
    out = x.new_empty(x.shape[0], *x.shape[2:], x.shape[1])
    return out.permute(0, -1, *range(1, x.dim() - 1))


def _pixel_rows(x: Tensor) -> tuple[Tensor, int, int]:
    """`x` itself or a channels-last copy, with the strides between images and between neighbouring pixels."""
    rows = x.permute(0, *range(2, x.dim()), 1)
    collapses = x.dim() == 3 or x.shape[2] == 1 or rows.stride(1) == rows.shape[2] * rows.stride(2)
    if not collapses or (x.shape[1] > 1 and rows.stride(-1) != 1):
        rows = rows.contiguous()
    return rows, rows.stride(0), rows.stride(-2)


def statistics(x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1 / deviation of each group, float32 [B, groups]: the CPU kernel's first pass."""
    mean = x.new_zeros(x.shape[0], groups, dtype=torch.float32)
    rstd = torch.zeros_like(mean)
    nothing = mean.new_zeros(x.shape[1])
    _launch(x, None, nothing, nothing, None, None, mean, rstd, groups, eps, False)
    return mean, rstd


def _run(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    batch = x.shape[0]
    normed = _empty_like(x)
    mean = x.new_zeros(batch, groups, dtype=torch.float32)
    rstd = torch.zeros_like(mean)
    summed = None if residual is None else _empty_like(x)
    if normed.numel():
        _launch(x, residual, weight, bias, normed, summed, mean, rstd, groups, eps, silu)
    return normed, summed, mean, rstd


def _launch(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    normed: Tensor | None,
    summed: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    groups: int,
    eps: float,
    silu: bool,
) -> None:
    batch, channels = x.shape[:2]
    pixels = x[0, 0].numel()
    threads = torch.get_num_threads()
    rows, x_image, x_pixel = _pixel_rows(x)
    added, residual_image, residual_pixel = (None, 0, 0) if residual is None else _pixel_rows(residual)
    weight, bias = weight.float().contiguous(), bias.float().contiguous()
    workspace_bytes = _C.cpu_group_norm_workspace(batch, pixels, channels, groups, threads)
    workspace = x.new_empty(workspace_bytes, dtype=torch.uint8)
    _C.cpu_group_norm(
        rows.data_ptr(), 0 if added is None else added.data_ptr(), weight.data_ptr(), bias.data_ptr(),
        0 if normed is None else normed.data_ptr(), 0 if summed is None else summed.data_ptr(),
        mean.data_ptr(), rstd.data_ptr(), workspace.data_ptr(), workspace_bytes, batch, pixels, channels,
        groups, x_image, x_pixel, residual_image, residual_pixel, eps, silu, DTYPE_CODE[x.dtype], threads,
    )  # fmt: skip


def _parameters(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, int]:
    """Weight and bias in one dtype, which is that of `x` or float32, and its code."""
    dtype = weight.dtype if weight.dtype == bias.dtype else torch.float32
    return weight.to(dtype).contiguous(), bias.to(dtype).contiguous(), DTYPE_CODE[dtype]


def _run_cuda(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    batch, channels = x.shape[:2]
    normed = _empty_like(x)
    mean = x.new_empty(batch, groups, dtype=torch.float32)
    rstd = torch.empty_like(mean)
    summed = None if residual is None else _empty_like(x)
    if not normed.numel():
        return normed, summed, mean.zero_(), rstd.zero_()
    pixels = x[0, 0].numel()
    rows, x_image, x_pixel = _pixel_rows(x)
    added, residual_image, residual_pixel = (None, 0, 0) if residual is None else _pixel_rows(residual)
    weight, bias, parameters = _parameters(x, weight, bias)
    size = _C.cuda_group_norm_workspace(batch, pixels, channels, groups)
    workspace = x.new_empty(size, dtype=torch.uint8)
    _C.cuda_group_norm(
        rows.data_ptr(), 0 if added is None else added.data_ptr(), weight.data_ptr(), bias.data_ptr(),
        normed.data_ptr(), 0 if summed is None else summed.data_ptr(), mean.data_ptr(), rstd.data_ptr(),
        workspace.data_ptr(), size, batch, pixels, channels, groups, x_image, x_pixel, residual_image,
        residual_pixel, eps, silu, DTYPE_CODE[x.dtype], parameters, stream_of(x),
    )  # fmt: skip
    return normed, summed, mean, rstd


def _cpu(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    normed, _, mean, rstd = _run(x, None, weight, bias, groups, eps, silu)
    return normed, mean, rstd


def _add_cpu(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    normed, summed, mean, rstd = _run(x, residual, weight, bias, groups, eps, silu)
    assert summed is not None
    return normed, summed, mean, rstd


def _cuda(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    normed, _, mean, rstd = _run_cuda(x, None, weight, bias, groups, eps, silu)
    return normed, mean, rstd


def _add_cuda(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    normed, summed, mean, rstd = _run_cuda(x, residual, weight, bias, groups, eps, silu)
    assert summed is not None
    return normed, summed, mean, rstd


def _fake(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> tuple[Tensor, ...]:
    return (
        _empty_like(x),
        x.new_empty(x.shape[0], groups, dtype=torch.float32),
        x.new_empty(x.shape[0], groups, dtype=torch.float32),
    )


def _add_fake(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, ...]:
    normed, mean, rstd = _fake(x, weight, bias, groups, eps, silu)
    return normed, _empty_like(x), mean, rstd


def _plain_statistics(x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    grouped = x.unflatten(1, (groups, -1)).flatten(2).float()
    variance, mean = torch.var_mean(grouped, dim=2, correction=0)
    return mean, (variance + eps).rsqrt()


def _plain(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    normed = reference.group_norm(x, weight, bias, groups=groups, eps=eps, silu=silu)
    assert isinstance(normed, Tensor)  # a pair only with a residual
    return _empty_like(x).copy_(normed), *_plain_statistics(x, groups, eps)


def _add_plain(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    summed = _empty_like(x).copy_(x + residual)
    normed, mean, rstd = _plain(summed, weight, bias, groups, eps, silu)
    return normed, summed, mean, rstd


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, _, _, ctx.silu = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, mean, rstd, weight, bias)


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.dove.group_norm_backward(grad, None, *ctx.saved_tensors, ctx.silu)
    return *gradients, None, None, None


def _add_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, weight, bias, _, _, ctx.silu = inputs
    _, summed, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)  # an unused `summed` costs no zeros
    ctx.save_for_backward(summed, mean, rstd, weight, bias)


def _add_backward(
    ctx: Any, grad: Tensor | None, grad_summed: Tensor | None, *_: Any
) -> tuple[Tensor | None, ...]:
    if grad is None:  # only the sum was used
        return grad_summed, grad_summed, None, None, None, None, None
    grad_x, *parameters = torch.ops.dove.group_norm_backward(grad, grad_summed, *ctx.saved_tensors, ctx.silu)
    return grad_x, grad_x, *parameters, None, None, None


_PARAMETERS = "Tensor weight, Tensor bias, int groups, float eps, bool silu"
register(
    f"group_norm(Tensor x, {_PARAMETERS}) -> (Tensor normed, Tensor mean, Tensor rstd)",
    cpu=_cpu,
    cuda=_cuda,
    fake=_fake,
    reference=_plain,
    setup_context=_setup,
    backward=_backward,
)
register(
    f"add_group_norm(Tensor x, Tensor residual, {_PARAMETERS}) "
    "-> (Tensor normed, Tensor summed, Tensor mean, Tensor rstd)",
    cpu=_add_cpu,
    cuda=_add_cuda,
    fake=_add_fake,
    reference=_add_plain,
    setup_context=_add_setup,
    backward=_add_backward,
)
