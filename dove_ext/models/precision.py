"""Where autocast must not lower the precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def full_precision(function: Callable[..., Tensor], *args: Any) -> Tensor:
    """`function(*args)`, in float32 where autocast is on.

    The linear code keeps what the stacks must learn to improve. Its bfloat16 rounding is small beside a
    picture, but not always beside their gradient, which is what is left of errors that nearly cancel: with
    all of rendering in bfloat16 we have seen weights whose gradient for the token decoder's stack has a
    cosine of 0.65 with the true one (docs/ablations.md). Without autocast (also with bfloat16 weights) this
    is a plain call.
    """
    kind = next(a.device.type for a in args if isinstance(a, Tensor))
    # Devices that know no autocast, such as meta, raise when asked whether it is on.
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return function(*args)
    with torch.autocast(kind, enabled=False):
        floats = (a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)
        return function(*floats)
