"""The element-wise work of a parallel-residual block, x + attention(norm_a(x)) + mlp(norm_b(x)), fused."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dove_ext import _C
from dove_ext.ops import reference
from dove_ext.ops.backend import use_kernels
from dove_ext.ops.library import call, register


def pair_norm(
    x: Tensor, weight_a: Tensor, bias_a: Tensor, weight_b: Tensor, bias_b: Tensor, *, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Two LayerNorms of one x, which share its mean and variance: x is read once.

    Args:
        x: [..., D], float32 or bfloat16 (on CUDA also float16).
        weight_a: [D], float32 or the dtype of `x`; likewise the other three.
        bias_a: [D].
        weight_b: [D].
        bias_b: [D].
        eps: added to the variance.

    Returns:
        (Tensor, Tensor): shape and dtype of `x`, contiguous. Differentiable in all tensors.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if the dtypes do not fit.
    """
    parameters = {"weight_a": weight_a, "bias_a": bias_a, "weight_b": weight_b, "bias_b": bias_b}
    _check("pair_norm", x, {}, parameters)
    if not use_kernels("pair_norm", x):
        return reference.pair_norm(x, weight_a, bias_a, weight_b, bias_b, eps=eps)
    a, b, _, _ = torch.ops.dove.pair_norm(x, weight_a, bias_a, weight_b, bias_b, eps)
    return a, b


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """The exact GELU of x + bias: v Phi(v), Phi the normal distribution's.

    Args:
        x: [..., D], float32 or bfloat16 (on CUDA also float16).
        bias: [D], float32 or the dtype of `x`.

    Returns:
        Tensor: shape and dtype of `x`, contiguous. Differentiable in both.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if the dtypes do not fit.
    """
    _check("bias_gelu", x, {}, {"bias": bias})
    if not use_kernels("bias_gelu", x):
        return reference.bias_gelu(x, bias)
    out: Tensor = torch.ops.dove.bias_gelu(x, bias)
    return out


def add_branches(x: Tensor, a: Tensor, b: Tensor, bias_a: Tensor, bias_b: Tensor) -> Tensor:
    """The end of a block with two branches: x + (a + bias_a) + (b + bias_b), rounded once.

    Args:
        x: [..., D], float32 or bfloat16 (on CUDA also float16).
        a: shape and dtype of `x`.
        b: shape and dtype of `x`.
        bias_a: [D], float32 or the dtype of `x`.
        bias_b: [D], as `bias_a`.

    Returns:
        Tensor: shape and dtype of `x`, contiguous. Differentiable in all tensors.

    Raises:
        ValueError: if a shape does not fit.
        TypeError: if the dtypes do not fit.
    """
    _check("add_branches", x, {"a": a, "b": b}, {"bias_a": bias_a, "bias_b": bias_b})
    if not use_kernels("add_branches", x):
        return reference.add_branches(x, a, b, bias_a, bias_b)
    out: Tensor = torch.ops.dove.add_branches(x, a, b, bias_a, bias_b)
    return out


def _check(op: str, x: Tensor, like: dict[str, Tensor], parameters: dict[str, Tensor]) -> None:
    if x.dim() < 1 or x.shape[-1] < 1:
        raise ValueError(f"{op}: x must be [..., D] with D at least 1, got {list(x.shape)}")
    for name, tensor in like.items():
        if tensor.shape != x.shape:
            raise ValueError(f"{op}: {name} must be {list(x.shape)} like x, got {list(tensor.shape)}")
        if tensor.dtype != x.dtype:
            raise TypeError(f"{op}: {name} must be {x.dtype} like x, got {tensor.dtype}")
    for name, tensor in parameters.items():
        if tensor.shape != x.shape[-1:]:
            raise ValueError(f"{op}: {name} must be [{x.shape[-1]}], got {list(tensor.shape)}")
        if tensor.dtype not in (torch.float32, x.dtype):
            raise TypeError(f"{op}: {name} must be float32 or {x.dtype}, got {tensor.dtype}")


def _empty(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _one_dtype(*parameters: Tensor) -> tuple[Tensor, ...]:
    """The parameters, dense, in one dtype (float32 if they differ)."""
    dtypes = {p.dtype for p in parameters}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    return tuple(p.to(dtype).contiguous() for p in parameters)


def _call(op: str, struct: Any, x: Tensor, parameters: Tensor, **fields: Any) -> None:
    """A kernel for the rows of `x`; `parameters` is one of those that `_one_dtype` gave."""
    call(
        f"cuda_{op}", struct, x, x=x, rows=x.numel() // x.shape[-1], width=x.shape[-1], dtype=x.dtype,
        parameters=parameters.dtype, **fields,
    )  # fmt: skip


def _pair_plain(
    x: Tensor, weight_a: Tensor, bias_a: Tensor, weight_b: Tensor, bias_b: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, b = reference.pair_norm(x, weight_a, bias_a, weight_b, bias_b, eps=eps)
    variance, mean = torch.var_mean(x.float(), dim=-1, correction=0)
    return a.contiguous(), b.contiguous(), mean, (variance + eps).rsqrt()


def _pair_cuda(
    x: Tensor, weight_a: Tensor, bias_a: Tensor, weight_b: Tensor, bias_b: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = x.contiguous()
    a, b, mean, rstd = _pair_fake(x, weight_a, bias_a, weight_b, bias_b, eps)
    weight_a, bias_a, weight_b, bias_b = _one_dtype(weight_a, bias_a, weight_b, bias_b)
    _call(
        "pair_norm", _C.PairNormArgs, x, weight_a, weight=(weight_a, weight_b), bias=(bias_a, bias_b),
        normed=(a, b), mean=mean, rstd=rstd, eps=eps,
    )  # fmt: skip
    return a, b, mean, rstd


def _pair_fake(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean = x.new_empty(x.shape[:-1], dtype=torch.float32)
    return _empty(x), _empty(x), mean, torch.empty_like(mean)


def _pair_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight_a, _, weight_b, _, _ = inputs
    _, _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, weight_a, weight_b, mean, rstd)


def _pair_backward(ctx: Any, grad_a: Tensor, grad_b: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    grad_x, parameters = torch.ops.dove.pair_norm_backward(grad_a, grad_b, *ctx.saved_tensors)
    weight_a, weight_b = ctx.saved_tensors[1:3]
    first, second = parameters[:2].to(weight_a.dtype), parameters[2:].to(weight_b.dtype)
    return grad_x, first[0], first[1], second[0], second[1], None


def _pair_backward_plain(
    grad_a: Tensor, grad_b: Tensor, x: Tensor, weight_a: Tensor, weight_b: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    """With z the normalised row and dz the gradients times weight: rstd (dz - mean(dz) - z mean(dz z))."""
    z = (x.float() - mean[..., None]) * rstd[..., None]
    first, second = grad_a.float(), grad_b.float()
    dz = first * weight_a.float() + second * weight_b.float()
    dx = rstd[..., None] * (dz - dz.mean(-1, keepdim=True) - z * (dz * z).mean(-1, keepdim=True))
    rows = [t.reshape(-1, x.shape[-1]).sum(0) for t in (first * z, first, second * z, second)]
    return _empty(x).copy_(dx), torch.stack(rows)


def _pair_backward_cuda(
    grad_a: Tensor, grad_b: Tensor, x: Tensor, weight_a: Tensor, weight_b: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    x, grad_a, grad_b = x.contiguous(), grad_a.contiguous(), grad_b.contiguous()
    weight_a, weight_b = _one_dtype(weight_a, weight_b)
    grad_x, parameters = _pair_backward_fake(grad_a, grad_b, x)
    _call(
        "pair_norm_backward", _C.PairNormGradArgs, x, weight_a, grad=(grad_a, grad_b),
        weight=(weight_a, weight_b), mean=mean, rstd=rstd, grad_x=grad_x, grad_parameters=parameters,
    )  # fmt: skip
    return grad_x, parameters


def _pair_backward_fake(grad_a: Tensor, grad_b: Tensor, x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _empty(x), x.new_empty(4, x.shape[-1], dtype=torch.float32)


def _gelu_plain(x: Tensor, bias: Tensor) -> Tensor:
    return _empty(x).copy_(torch.nn.functional.gelu(x.float() + bias.float()))


def _gelu_cuda(x: Tensor, bias: Tensor) -> Tensor:
    out, bias = _empty(x), bias.contiguous()
    _call("bias_gelu", _C.BiasGeluArgs, x.contiguous(), bias, bias=bias, out=out)
    return out


def _gelu_backward_cuda(grad: Tensor, x: Tensor, bias: Tensor) -> Tensor:
    out, grad, bias = _empty(x), grad.contiguous(), bias.contiguous()
    _call("bias_gelu_backward", _C.BiasGeluArgs, x.contiguous(), bias, bias=bias, grad=grad, out=out)
    return out


def _gelu_backward_plain(grad: Tensor, x: Tensor, bias: Tensor) -> Tensor:
    out = torch.ops.aten.gelu_backward(grad.float(), x.float() + bias.float())
    return _empty(x).copy_(out)


def _gelu_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gelu_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    x, bias = ctx.saved_tensors
    grad_x = torch.ops.dove.bias_gelu_backward(grad, x, bias)
    return grad_x, _column_sums(grad_x, bias)


def _column_sums(grad: Tensor, bias: Tensor) -> Tensor:
    """The gradient of a bias; torch sums in float32 and in one order."""
    return grad.reshape(-1, grad.shape[-1]).sum(0, dtype=torch.float32).to(bias.dtype)


def _add_plain(x: Tensor, a: Tensor, b: Tensor, bias_a: Tensor, bias_b: Tensor) -> Tensor:
    total = x.float() + (a.float() + bias_a.float()) + (b.float() + bias_b.float())
    return _empty(x).copy_(total)


def _add_cuda(x: Tensor, a: Tensor, b: Tensor, bias_a: Tensor, bias_b: Tensor) -> Tensor:
    x, a, b = x.contiguous(), a.contiguous(), b.contiguous()
    bias_a, bias_b = _one_dtype(bias_a, bias_b)
    out = _empty(x)
    _call("add_branches", _C.AddBranchesArgs, x, bias_a, a=a, b=b, bias_a=bias_a, bias_b=bias_b, out=out)
    return out


def _add_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[3:])


def _add_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    bias_a, bias_b = ctx.saved_tensors
    sums = _column_sums(grad, grad.new_empty(0, dtype=torch.float32))
    return grad, grad, grad, sums.to(bias_a.dtype), sums.to(bias_b.dtype)


_PAIR = "Tensor weight_a, Tensor bias_a, Tensor weight_b, Tensor bias_b, float eps"
register(
    f"pair_norm(Tensor x, {_PAIR}) -> (Tensor normed_a, Tensor normed_b, Tensor mean, Tensor rstd)",
    cpu=_pair_plain,
    cuda=_pair_cuda,
    fake=_pair_fake,
    reference=_pair_plain,
    setup_context=_pair_setup,
    backward=_pair_backward,
)
register(
    "pair_norm_backward(Tensor grad_a, Tensor grad_b, Tensor x, Tensor weight_a, Tensor weight_b, "
    "Tensor mean, Tensor rstd) -> (Tensor grad_x, Tensor grad_parameters)",
    cpu=_pair_backward_plain,
    cuda=_pair_backward_cuda,
    fake=_pair_backward_fake,
    reference=_pair_backward_plain,
)
register(
    "bias_gelu(Tensor x, Tensor bias) -> Tensor",
    cpu=_gelu_plain,
    cuda=_gelu_cuda,
    fake=lambda x, bias: _empty(x),
    reference=_gelu_plain,
    setup_context=_gelu_setup,
    backward=_gelu_backward,
)
register(
    "bias_gelu_backward(Tensor grad, Tensor x, Tensor bias) -> Tensor",
    cpu=_gelu_backward_plain,
    cuda=_gelu_backward_cuda,
    fake=lambda grad, x, bias: _empty(x),
    reference=_gelu_backward_plain,
)
register(
    "add_branches(Tensor x, Tensor a, Tensor b, Tensor bias_a, Tensor bias_b) -> Tensor",
    cpu=_add_plain,
    cuda=_add_cuda,
    fake=lambda x, *_: _empty(x),
    reference=_add_plain,
    setup_context=_add_setup,
    backward=_add_backward,
)
