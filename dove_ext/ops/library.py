"""The torch operator library `dove::`.

An op is defined once (`register`), has a compiled implementation for CPU tensors and, in a build with CUDA,
for CUDA tensors, a fake implementation for tracing and, for devices without compiled kernels, its
plain-PyTorch reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dove_ext import _C
from dove_ext.ops.backend import HAS_CUDA_KERNELS, gpu_served, warn_no_kernels

LIBRARY = torch.library.Library("dove", "DEF")

# The values of dove::DType in csrc/include/dove/common.h.
DTYPE_CODE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

CUDA_IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {}
"""Of every op with CUDA kernels; registered with torch only where the build holds them."""


def stream_of(tensor: Tensor) -> int:
    """The CUDA stream (its address) on which the launchers of `_C` are to queue work for `tensor`."""
    return int(torch.cuda.current_stream(tensor.device).cuda_stream) if tensor.is_cuda else 0


def call(kernel: str, struct: Callable[..., Any], like: Tensor, **fields: Any) -> None:
    """Make a struct of arguments and hand it to a kernel of `_C`, with as much workspace as it wants.

    Args:
        kernel: such as "cpu_pack" or "cuda_pack"; the CPU's get torch's number of threads, CUDA's the stream.
        struct: the class of `_C` that the kernel takes (csrc/include/dove); fields not named here are zero.
        like: a tensor of the device.
        fields: the struct's fields by name. A tensor stands for its address and lives until the call is over
            (what is freed then may be used again at once, but only by later work of the same stream), None
            stands for address 0, a dtype for its code; a tuple is converted item by item.
    """
    on_cpu = kernel.startswith("cpu_")
    if on_cpu:
        fields["threads"] = torch.get_num_threads()
    args = struct(**{name: v if type(v) is int else _field(v) for name, v in fields.items()})
    if (size := vars(_C).get(f"{kernel}_workspace")) is not None:
        workspace = like.new_empty(size(args), dtype=torch.uint8)
        args.workspace, args.workspace_bytes = workspace.data_ptr(), workspace.numel()
    run = getattr(_C, kernel)
    run(args) if on_cpu else run(args, stream_of(like))


def _field(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.data_ptr()
    if value is None:
        return 0
    if isinstance(value, torch.dtype):
        return DTYPE_CODE[value]
    if isinstance(value, tuple):
        return tuple([v if type(v) is int else _field(v) for v in value])
    return value


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
        if not gpu_served(device.index):
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
