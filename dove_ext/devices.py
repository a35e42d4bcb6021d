"""Devices by name, with a clear word where one is unknown or not there, and the way to them."""

from __future__ import annotations

import torch
from torch import Tensor

from dove_ext.errors import DoveError


def find_device(name: str) -> torch.device:
    """The device of a name such as "cpu", "cuda", "cuda:1" or "mps".

    Raises:
        ValueError: if no model can run on a device of this name.
        DoveError: if this machine has none.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is unknown; use cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device {name!r} cannot run a model; use cpu, cuda or cuda:N")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DoveError(f"device {name!r} is not there: torch sees no Apple GPU")
    if device.type == "cuda" and not (
        torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    ):
        count = torch.cuda.device_count()
        raise DoveError(f"device {name!r} is not there: torch sees {count} CUDA devices")
    return device


def send(x: Tensor, device: torch.device) -> Tensor:
    """`x` on `device`; to a GPU through page-locked memory, so that nobody waits for work queued there."""
    if device.type != "cuda" or x.device.type != "cpu":
        return x.to(device)
    staged = torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x)  # of crops and expanded greys, too
    return staged.to(device, non_blocking=True)
