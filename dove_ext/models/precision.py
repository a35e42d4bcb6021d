"""Where autocast must not lower the precision, and where it would if PyTorch knew the op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from dove_ext.ops.backend import autocasts

Result = TypeVar("Result")


def full_precision(function: Callable[..., Result], *args: Any) -> Result:
    """`function(*args)`, in float32 where autocast is on.

    The linear code keeps what the stacks must learn to improve. Its bfloat16 rounding is small beside a
    picture, but not always beside their gradient, which is what is left of errors that nearly cancel: with
    all of rendering in bfloat16 we have seen weights whose gradient for the token decoder's stack has a
    cosine of 0.65 with the true one (docs/ablations.md). Without autocast (also with bfloat16 weights) this
    is a plain call.
    """
    kind = next(a.device.type for a in args if isinstance(a, Tensor))
    if not autocasts(kind):
        return function(*args)
    with torch.autocast(kind, enabled=False):
        floats = (a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)
        return function(*floats)


# Where the EOS kernels gain by 16-bit operands. On a CPU without instructions for bfloat16 rounding the
# weights takes ten times as long as a scan, and the sums are slower, too.
_FASTER_LOWERED = ("cuda",)


def operands(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """`x` and a head's `weight` as the EOS kernels take them: in `weight`'s dtype; on CUDA in autocast's.

    `F.linear` is lowered by autocast; these ops stand for one. Gradients come back in the dtypes given here.
    """
    kind, dtype = x.device.type, weight.dtype
    if kind in _FASTER_LOWERED and autocasts(kind) and dtype == torch.float32:
        dtype = torch.get_autocast_dtype(kind)
    return x.to(dtype), weight.to(dtype)
