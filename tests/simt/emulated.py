"""Runs the ops of dove_ext on CPU tensors through the CUDA launch code and the emulated kernels.

Inside `emulation(module)` the operators' CPU implementations are the functions that normally serve CUDA
tensors, the launchers of `dove_ext._C` are those of the emulated module, and every tensor these functions see
or make lies in guarded memory: a read or write outside of it ends the launch with an error, new memory holds
NaN.
"""

from __future__ import annotations

import contextlib
import ctypes
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
import torch._dynamo  # by a dispatch mode's first call otherwise: seconds, and in every child of a fork anew
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dove_ext import _C
from dove_ext.ops import backend, library


def _guarded(module: ModuleType, tensor: Tensor, copy: bool) -> Tensor:
    """The same tensor (strides too) in memory of its own between guards."""
    storage = tensor.untyped_storage()
    size = storage.nbytes()
    if size == 0:
        return tensor
    address = module.simt_allocate(size)
    if copy:
        ctypes.memmove(address, storage.data_ptr(), size)
    buffer = (ctypes.c_uint8 * size).from_address(address)
    flat = torch.frombuffer(buffer, dtype=torch.uint8).view(tensor.dtype)
    return flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


class _GuardNew(TorchDispatchMode):
    """Moves every tensor that an operator has newly made into guarded memory."""

    def __init__(self, module: ModuleType) -> None:
        super().__init__()
        self.module = module

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not isinstance(result, Tensor) or func.namespace == "dove":
            return result
        name = func.overloadpacket.__name__
        known = {t.untyped_storage().data_ptr() for t in args if isinstance(t, Tensor)}
        if result.untyped_storage().data_ptr() in known or func.is_view:
            return result
        return _guarded(self.module, result, copy="empty" not in name)


def _through_guards(module: ModuleType, function: Any) -> Any:
    def call(*args: Any) -> Any:
        with torch.no_grad():
            arguments = [_guarded(module, a, True) if isinstance(a, Tensor) else a for a in args]
            try:
                with _GuardNew(module):
                    result = function(*arguments)
                results = result if isinstance(result, tuple) else (result,)
                kept = tuple(r.clone() if isinstance(r, Tensor) else r for r in results)
            finally:
                damaged = module.simt_release_all()
        if damaged:
            raise RuntimeError(f"simt: {damaged}")
        return kept if isinstance(result, tuple) else kept[0]

    return call


@contextlib.contextmanager
def emulation(module: ModuleType, seed: int = 0) -> Iterator[None]:
    """Let the ops run emulated; `seed` chooses the schedule of warps, lanes and blocks."""
    names = [name for name in dir(module) if name.startswith("cuda_") or name.endswith("Args")]
    launchers = {name: getattr(module, name) for name in names}
    before = {name: getattr(_C, name) for name in launchers if hasattr(_C, name)}
    dtypes = backend.KERNEL_DTYPES["cpu"]
    override = torch.library.Library("dove", "IMPL")
    module.simt_seed(seed)
    try:
        for name, launcher in launchers.items():
            setattr(_C, name, launcher)
        backend.KERNEL_DTYPES["cpu"] = backend.KERNEL_DTYPES["cuda"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of the override that is meant
            for name, function in library.CUDA_IMPLEMENTATIONS.items():
                override.impl(name, _through_guards(module, function), "CPU", allow_override=True)
        yield
    finally:
        override._destroy()
        backend.KERNEL_DTYPES["cpu"] = dtypes
        for name in launchers:
            if name in before:
                setattr(_C, name, before[name])
            else:
                delattr(_C, name)
