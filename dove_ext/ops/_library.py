"""The torch operator library `dove::` and what every op's wrapper shares.

An op is defined once (`register`), has a compiled implementation for CPU tensors and, in a build with CUDA,
for CUDA tensors, a fake implementation for tracing and, for devices without compiled kernels, its
plain-PyTorch reference. `set_backend` is how a caller chooses between them; nothing is read from the
environment.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dove_ext import _C
from dove_ext._info import info, serves

LIBRARY = torch.library.Library("dove", "DEF")

BACKENDS = ("auto", "cpu", "cuda", "torch")
KERNEL_DTYPES = {
    "cpu": (torch.float32, torch.bfloat16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}
# The values of dove::DType in csrc/include/dove/common.h.
DTYPE_CODE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

HAS_CUDA_KERNELS = bool(_C.cuda_archs())
CUDA_IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {}
"""Of every op with CUDA kernels; registered with torch only where the build holds them."""

_backend = "auto"
_warned = False


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
    if first.is_cuda and not _gpu_served(first.device.index):
        served = ()
    if served and first.is_floating_point() and first.dtype not in served:
        *others, last = (str(dtype).removeprefix("torch.") for dtype in served)
        raise TypeError(
            f"{op}: the compiled kernels take {', '.join(others)} or {last}, got {first.dtype}; "
            "cast the model or call dove_ext.set_backend('torch')"
        )
    return True


def has_kernels(tensor: Tensor) -> bool:
    """Whether compiled kernels of this build serve `tensor` under the chosen backend; never raises."""
    if _backend == "torch" or (tensor.is_cuda and not _gpu_served(tensor.device.index)):
        return False
    return tensor.dtype in KERNEL_DTYPES.get(tensor.device.type, ())


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


def stream_of(tensor: Tensor) -> int:
    """The CUDA stream (its address) on which the launchers of `_C` are to queue work for `tensor`."""
    return int(torch.cuda.current_stream(tensor.device).cuda_stream) if tensor.is_cuda else 0


@functools.cache
def _gpu_served(index: int | None) -> bool:
    """Whether this build holds kernels for a GPU of this kind."""
    return HAS_CUDA_KERNELS and serves(_C.cuda_archs().split(","), torch.cuda.get_device_capability(index))


def _on_device(name: str, kernels: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """Make the tensors' device the current one, to which a launch goes; `plain` for GPUs without kernels."""

    def call(*args: Any, **kwargs: Any) -> Any:
        device = next(a.device for a in args if isinstance(a, Tensor))
        # A kernel takes addresses: one of another device's memory would be read as if it were of this one.
        foreign = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.device != device]
        if foreign:
            wrong, arguments = foreign[0], getattr(torch.ops.dove, name).default._schema.arguments
            raise ValueError(
                f"{name}: {arguments[wrong].name} is on {args[wrong].device}, but {arguments[0].name} is on "
                f"{device}; move them to one device"
            )
        if not _gpu_served(device.index):
            return plain(*args, **kwargs)
        with torch.cuda.device(device):
            return kernels(*args, **kwargs)

    return call


def _no_second_derivative(op: str) -> Callable[..., Any]:
    def backward(*_: Any) -> Any:
        raise RuntimeError(
            f"{op}: the compiled kernels have no second derivative; "
            "call dove_ext.set_backend('torch') before the forward pass"
        )

    return backward


def register(
    schema: str,
    *,
    cpu: Callable[..., Any],
    cuda: Callable[..., Any] | None = None,
    fake: Callable[..., Any],
    reference: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> None:
    """Define one op of the library with its implementations.

    Args:
        schema: torch schema string, such as "pack(Tensor padded, Tensor cu_seqlens, int total) -> Tensor".
        cpu: calls the compiled CPU kernel.
        cuda: calls the CUDA launcher of `_C`; None where there is none.
        fake: shapes and dtypes only.
        reference: plain PyTorch, used for devices without compiled kernels.
        setup_context: see torch.library.register_autograd.
        backward: see torch.library.register_autograd; None for ops without a gradient, of which those called
            OP_backward raise where one is asked for: it would be a second derivative.
    """
    name = schema.split("(", 1)[0]
    LIBRARY.define(schema)
    LIBRARY.impl(name, cpu, "CPU")

    def plain(*args: Any, **kwargs: Any) -> Any:
        device = next(a.device for a in args if isinstance(a, Tensor))
        warn_no_kernels(name, device)
        return reference(*args, **kwargs)

    if cuda is not None:
        CUDA_IMPLEMENTATIONS[name] = cuda
    LIBRARY.impl(name, _on_device(name, cuda, plain) if cuda and HAS_CUDA_KERNELS else plain, "CUDA")
    LIBRARY.impl(name, plain, "MPS")
    torch.library.register_fake(f"dove::{name}", fake, lib=LIBRARY)
    if backward is None and name.endswith("_backward"):
        backward = _no_second_derivative(name.removesuffix("_backward"))
    if backward is not None:
        torch.library.register_autograd(f"dove::{name}", backward, setup_context=setup_context, lib=LIBRARY)
