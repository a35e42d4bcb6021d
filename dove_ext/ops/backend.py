"""Who computes the ops: compiled kernels of a device or plain PyTorch.

`set_backend` is how a caller chooses; nothing is read from the environment.
"""

from __future__ import annotations

import functools
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from dove_ext import _C
from dove_ext._info import info, serves

BACKENDS = ("auto", "cpu", "cuda", "torch")
KERNEL_DTYPES = {
    "cpu": (torch.float32, torch.bfloat16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}
HAS_CUDA_KERNELS = bool(_C.cuda_archs())

_backend = "auto"
_warned = False


def current_backend() -> str:
    """The name last given to `set_backend`."""
    return _backend


def set_backend(name: str) -> str:
    """Choose who computes the ops; returns the previous choice.

    Args:
        name: "auto" (compiled kernels where the tensor's device has them, else plain PyTorch with one
            warning), "cpu" or "cuda" (insist on compiled kernels of that device), or "torch" (plain PyTorch
            everywhere, for comparison, export and debugging).

    Raises:
        ValueError: if the name is unknown.
        RuntimeError: if compiled kernels are asked for that this build or machine does not have.
    """
    global _backend
    if name not in BACKENDS:
        raise ValueError(f"backend {name!r} is unknown; choose one of {', '.join(BACKENDS)}")
    if name == "cuda":
        cuda = info()["backends"]["cuda"]
        if not cuda["available"]:
            raise RuntimeError(f"backend 'cuda' cannot run: {cuda['why']}")
    previous, _backend = _backend, name
    return previous


def use_kernels(op: str, *tensors: Tensor | None) -> bool:
    """Decide whether `op` goes to the torch operator (compiled) or to its plain-PyTorch reference.

    The reference also computes what autocast has lowered to float16 on the CPU: nobody could cast it first.

    Raises:
        TypeError: if compiled kernels are to run on a dtype they do not serve.
        RuntimeError: if the chosen backend does not serve the tensors' device.
    """
    if _backend == "torch":
        return False
    first = next(t for t in tensors if t is not None)
    if _backend != "auto" and first.device.type != _backend:
        raise RuntimeError(
            f"{op}: backend {_backend!r} was chosen, the tensors are on {first.device.type!r}; "
            "move them or call dove_ext.set_backend('auto')"
        )
    served = KERNEL_DTYPES.get(first.device.type, ())
    if first.is_cuda and not gpu_served(first.device.index):
        served = ()
    if served and first.is_floating_point() and first.dtype not in served:
        if _backend == "auto" and first.dtype == torch.float16 and torch.is_autocast_enabled("cpu"):
            return False
        *others, last = (str(dtype).removeprefix("torch.") for dtype in served)
        raise TypeError(
            f"{op}: the compiled kernels take {', '.join(others)} or {last}, got {first.dtype}; "
            "cast the model or call dove_ext.set_backend('torch')"
        )
    return True


def has_kernels(tensor: Tensor) -> bool:
    """Whether compiled kernels of this build serve `tensor` under the chosen backend; never raises."""
    if _backend == "torch" or (tensor.is_cuda and not gpu_served(tensor.device.index)):
        return False
    return tensor.dtype in KERNEL_DTYPES.get(tensor.device.type, ())


def autocasts(kind: str) -> bool:
    """Whether autocast is on for a type of device; those without any, such as meta, would raise if asked."""
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def without_autocast(kind: str) -> AbstractContextManager[Any]:
    """Lets matrix products of PyTorch on a type of device have the dtype of their operands."""
    return torch.autocast(kind, enabled=False) if autocasts(kind) else nullcontext()


def warn_no_kernels(op: str, device: torch.device) -> None:
    """Say once per process that a device has no compiled kernels and plain PyTorch runs instead."""
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"dove_ext has no compiled kernels for {device.type!r} (first needed by {op}); "
            "running plain PyTorch there. `dove info` says why.",
            stacklevel=3,
        )


@functools.cache
def gpu_served(index: int | None) -> bool:
    """Whether this build holds kernels for a GPU of this kind."""
    return HAS_CUDA_KERNELS and serves(_C.cuda_archs().split(","), torch.cuda.get_device_capability(index))
