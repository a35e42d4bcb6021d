"""GroupNorm with SiLU behind it, a bias and a residual sum before it, for images in channels-last memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from dove_ext import _C
from dove_ext.ops import reference
from dove_ext.ops.backend import use_kernels
from dove_ext.ops.library import call, register


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
    """Normalise groups of neighbouring channels to mean 0 and variance 1, scale, shift, and apply SiLU.

    What is normalised is `x + residual + x_bias`. With a residual, the pass that takes the statistics makes
    and stores this sum; without one it is nowhere in memory, so that a convolution can leave its bias to the
    normalisation behind it. Statistics are float32 in every dtype and survive a mean much larger than the
    deviation. The result of an image depends neither on the rest of the batch nor on the number of threads.
    (GroupNorm and SiLU of the VQGAN's residual blocks: arXiv 2012.09841, section 3.)

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
        x_bias: [C], as `weight`; added to each pixel of `x`.

    Returns:
        Tensor: shape and dtype of `x`, in channels-last memory; with a residual (normed, summed), both so.
        Differentiable in `x`, `weight`, `bias`, `residual` and `x_bias`.

    Raises:
        ValueError: if a shape does not fit, or `groups` does not divide C.
        TypeError: if the dtypes do not fit.
    """
    if x.dim() not in (3, 4):
        raise ValueError(f"group_norm: x must be [B, C, H, W] or [B, C, N], got {list(x.shape)}")
    channels = x.shape[1]
    if groups < 1 or channels % groups:
        raise ValueError(f"group_norm: groups must divide the {channels} channels of x, got {groups}")
    for name, parameter in (("weight", weight), ("bias", bias), ("x_bias", x_bias)):
        if parameter is None:
            continue
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
        return reference.group_norm(
            x, weight, bias, groups=groups, eps=eps, silu=silu, residual=residual, x_bias=x_bias
        )
    if residual is None:
        normed, _, _ = torch.ops.dove.group_norm(x, weight, bias, x_bias, groups, eps, silu)
        return normed  # type: ignore[no-any-return]
    normed, summed, _, _ = torch.ops.dove.add_group_norm(x, residual, weight, bias, x_bias, groups, eps, silu)
    return normed, summed


def _empty_like(x: Tensor) -> Tensor:
    """Uninitialised, in the shape of `x` and in channels-last memory."""
    out = x.new_empty(x.shape[0], *x.shape[2:], x.shape[1])
    return out.permute(0, -1, *range(1, x.dim() - 1))


def _pixel_rows(x: Tensor) -> tuple[Tensor, int, int]:
    """`x` itself or a channels-last copy, with the strides between images and between neighbouring pixels."""
    rows = x.permute(0, *range(2, x.dim()), 1)
    # A stride along one element says nothing: it may be any number, also of what calls itself contiguous.
    column = x.dim() == 4 and x.shape[3] == 1
    collapses = x.dim() == 3 or 1 in x.shape[2:] or rows.stride(1) == rows.shape[2] * rows.stride(2)
    if not collapses or (x.shape[1] > 1 and rows.stride(-1) != 1):
        rows = rows.contiguous()
    return rows, rows.stride(0), rows.stride(-3 if column else -2)


def _parameters(
    device: str, weight: Tensor, bias: Tensor, x_bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The parameters, dense, in one dtype: float32 on the CPU and where they differ."""
    same = weight.dtype == bias.dtype and (x_bias is None or weight.dtype == x_bias.dtype)
    dtype = weight.dtype if device == "cuda" and same else torch.float32
    added = None if x_bias is None else x_bias.to(dtype).contiguous()
    return weight.to(dtype).contiguous(), bias.to(dtype).contiguous(), added


def statistics(x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1 / deviation of each group, float32 [B, groups]: the CPU kernel's first pass."""
    nothing = x.new_zeros(x.shape[1], dtype=torch.float32)
    return _launch("cpu", x, None, nothing, nothing, None, None, None, groups, eps, False)


def _launch(
    device: str,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    x_bias: Tensor | None,
    normed: Tensor | None,
    summed: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """Fills `normed` and `summed`; returns mean and rstd."""
    new = x.new_empty if x.numel() else x.new_zeros
    mean, rstd = (new(x.shape[0], groups, dtype=torch.float32) for _ in range(2))
    if x.numel():
        rows, x_image, x_pixel = _pixel_rows(x)
        added, added_image, added_pixel = (None, 0, 0) if residual is None else _pixel_rows(residual)
        weight, bias, x_bias = _parameters(device, weight, bias, x_bias)
        call(
            f"{device}_group_norm", _C.GroupNormArgs, x, x=rows, x_stride_image=x_image,
            x_stride_pixel=x_pixel, residual=added, residual_stride_image=added_image,
            residual_stride_pixel=added_pixel, x_bias=x_bias, weight=weight, bias=bias, normed=normed,
            summed=summed, mean=mean, rstd=rstd, batch=x.shape[0], pixels=x[0, 0].numel(),
            channels=x.shape[1], groups=groups, eps=eps, silu=silu, dtype=x.dtype, parameters=weight.dtype,
        )  # fmt: skip
    return mean, rstd


def _run(
    device: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    x_bias: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    normed = _empty_like(x)
    return normed, *_launch(device, x, None, weight, bias, x_bias, normed, None, groups, eps, silu)


def _run_add(
    device: str,
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    x_bias: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    normed, summed = _empty_like(x), _empty_like(x)
    moments = _launch(device, x, residual, weight, bias, x_bias, normed, summed, groups, eps, silu)
    return normed, summed, *moments


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor, x_bias: Tensor | None, groups: int, eps: float, silu: bool
) -> tuple[Tensor, ...]:
    return (
        _empty_like(x),
        x.new_empty(x.shape[0], groups, dtype=torch.float32),
        x.new_empty(x.shape[0], groups, dtype=torch.float32),
    )


def _add_fake(x: Tensor, residual: Tensor, *parameters: Any) -> tuple[Tensor, ...]:
    normed, mean, rstd = _fake(x, *parameters)
    return normed, _empty_like(x), mean, rstd


def _plain_statistics(x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    grouped = x.unflatten(1, (groups, -1)).flatten(2).float()
    variance, mean = torch.var_mean(grouped, dim=2, correction=0)
    return mean, (variance + eps).rsqrt()


def _plain(
    x: Tensor, weight: Tensor, bias: Tensor, x_bias: Tensor | None, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    summed = reference.add_bias(x, x_bias)
    normed = reference.group_norm(summed, weight, bias, groups=groups, eps=eps, silu=silu)
    assert isinstance(normed, Tensor)  # a pair only with a residual
    return _empty_like(x).copy_(normed), *_plain_statistics(summed, groups, eps)


def _add_plain(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    x_bias: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    summed = _empty_like(x).copy_(reference.add_bias(x + residual, x_bias))
    normed, mean, rstd = _plain(summed, weight, bias, None, groups, eps, silu)
    return normed, summed, mean, rstd


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, x_bias, _, _, ctx.silu = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, mean, rstd, weight, bias, x_bias)


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    *gradients, grad_x_bias = torch.ops.dove.group_norm_backward(
        grad, None, *ctx.saved_tensors, False, ctx.silu
    )
    return *gradients, grad_x_bias if ctx.needs_input_grad[3] else None, None, None, None


def _add_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, weight, bias, x_bias, _, _, ctx.silu = inputs
    _, summed, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)  # an unused `summed` costs no zeros
    ctx.save_for_backward(summed, mean, rstd, weight, bias, x_bias)


def _add_backward(
    ctx: Any, grad: Tensor | None, grad_summed: Tensor | None, *_: Any
) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad[4]
    if grad is None:  # only the sum was used
        grad_x_bias = None
        if wanted and grad_summed is not None:
            pixels = (0, *range(2, grad_summed.dim()))
            grad_x_bias = grad_summed.sum(pixels, dtype=torch.float32).to(ctx.saved_tensors[5].dtype)
        return grad_summed, grad_summed, None, None, grad_x_bias, None, None, None
    grad_x, grad_weight, grad_bias, grad_x_bias = torch.ops.dove.group_norm_backward(
        grad, grad_summed, *ctx.saved_tensors, True, ctx.silu
    )
    return grad_x, grad_x, grad_weight, grad_bias, grad_x_bias if wanted else None, None, None, None


_PARAMETERS = "Tensor weight, Tensor bias, Tensor? x_bias, int groups, float eps, bool silu"
register(
    f"group_norm(Tensor x, {_PARAMETERS}) -> (Tensor normed, Tensor mean, Tensor rstd)",
    cpu=partial(_run, "cpu"),
    cuda=partial(_run, "cuda"),
    fake=_fake,
    reference=_plain,
    setup_context=_setup,
    backward=_backward,
)
register(
    f"add_group_norm(Tensor x, Tensor residual, {_PARAMETERS}) "
    "-> (Tensor normed, Tensor summed, Tensor mean, Tensor rstd)",
    cpu=partial(_run_add, "cpu"),
    cuda=partial(_run_add, "cuda"),
    fake=_add_fake,
    reference=_add_plain,
    setup_context=_add_setup,
    backward=_add_backward,
)
