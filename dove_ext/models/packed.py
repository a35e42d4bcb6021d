"""Weights in the form that a CPU kernel wants, and the linear layer that uses one."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dove_ext.ops.backend import has_kernels


def wants_packed(x: Tensor, weight: Tensor) -> bool:
    """Whether a layer may use packed weights: on a CPU, and where nobody traces or differentiates."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype
        and has_kernels(x)
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )


def sample_of(weight: Tensor) -> Tensor:
    """Some of the values of a dense weight [rows, ...], a view: one or more of each row and of each column.

    They are at most a row apart, so no row is passed over. Their distance shares no factor with a row's
    length, so the columns come in turn, and is at most the number of rows, so all of them do.
    """
    rows, columns = weight.shape[0], weight[0].numel()
    stride = min(rows, columns)
    while math.gcd(stride, columns) > 1:
        stride -= 1
    return weight.as_strided((1 + (weight.numel() - 1) // stride,), (stride,))


class Packed:
    """What `pack` makes of a dense weight, made when first needed and when the weight has changed.

    Copies and pickles come without it: it follows from the weight, on this machine. Changes through
    `weight.data` leave no trace in PyTorch's version counter; they show in a sample of the values.
    """

    def __init__(self, pack: Callable[[Tensor], Tensor]) -> None:
        self._pack = pack
        self._made: tuple[tuple[Any, ...], Tensor, Tensor] | None = None  # version, sample, packed

    def of(self, weight: Tensor) -> Tensor:
        """The packed form of `weight`."""
        weight = weight.detach()
        sample = sample_of(weight)
        version = (weight.data_ptr(), weight.dtype, 0 if weight.is_inference() else weight._version)
        if self._made is None or self._made[0] != version or not torch.equal(self._made[1], sample):
            self._made = version, sample.clone(), self._pack(weight)
        return self._made[2]

    def __reduce__(self) -> tuple[Any, ...]:
        return Packed, (self._pack,)


def pack_linear(weight: Tensor) -> Tensor:
    """A linear layer's weight in oneDNN's own order."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return packed


def pack_rows(pick: Callable[[Tensor], Tensor], weight: Tensor) -> Tensor:
    """`pack_linear` of the rows that `pick` takes from the weight."""
    return pack_linear(pick(weight))


class Rows:
    """Some of a `Linear`'s output features; `pick` takes their rows from its weight and bias."""

    def __init__(self, pick: Callable[[Tensor], Tensor]) -> None:
        self.pick = pick
        self.packed = Packed(partial(pack_rows, pick))


class Linear(nn.Linear):
    """Linear layer; on a CPU without a gradient through oneDNN with packed weights.

    `F.linear` reorders the weights in every call, and in float32 goes through MKL, which is slow on AMD:
    packed weights make it a tenth (bfloat16) to a half (float32) faster. These are the operators behind
    `torch.compile` on CPUs; where a build of PyTorch lacks them, this is `F.linear`.
    """

    def __init__(self, features_in: int, features_out: int) -> None:
        super().__init__(features_in, features_out)
        self._packed = Packed(pack_linear)

    def forward(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """[..., features_in] to [..., features_out], then exact GELU if `gelu`."""
        if not self._has_kernel(x):
            out = super().forward(x)
            return F.gelu(out) if gelu else out
        result: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._packed.of(self.weight), self.bias, "gelu" if gelu else "none", [], "none"
        )
        return result

    def of_rows(self, rows: Rows, x: Tensor) -> Tensor:
        """[..., features_in] to those output features alone."""
        if not self._has_kernel(x):
            return F.linear(x, rows.pick(self.weight), rows.pick(self.bias))
        result: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, rows.packed.of(self.weight), rows.pick(self.bias), "none", [], "none"
        )
        return result

    def add_to(self, other: Tensor, x: Tensor) -> Tensor:
        """Sum other + self(x); where `x` has one image and `other` several, it serves them all."""
        if not self._has_kernel(x) or other.shape[:-1] != x.shape[:-1]:
            return other + self(x)
        result: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            x, other, self._packed.of(self.weight), self.bias, "add"
        )
        return result

    def _has_kernel(self, x: Tensor) -> bool:
        return wants_packed(x, self.weight) and _has_packed_linear(x.dtype)


def _has_packed_linear(dtype: torch.dtype) -> bool:
    ops = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available() or not hasattr(ops, "_linear_pointwise"):
        return False
    return dtype == torch.float32 or bool(ops._is_mkldnn_bf16_supported())
