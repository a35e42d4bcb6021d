"""Variable-length packing between padded [B, K, D] and packed [T, D] tokens, and zeros behind lengths.

Lengths on a CUDA device are not checked, since that would wait for the device: a length outside 0..K counts
as the nearer of the two, and rows beyond the packed side are left out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dove_ext import _C
from dove_ext.ops import reference
from dove_ext.ops.backend import use_kernels
from dove_ext.ops.library import register, stream_of


def pack(padded: Tensor, cu_seqlens: Tensor, total: int | None = None) -> Tensor:
    """Gather the kept positions of every image into one packed tensor.

    Args:
        padded: [B, K, D], float32 or bfloat16 (on CUDA also float16); the last dimension must be dense.
            Values behind an image's length are never read and may be NaN.
        cu_seqlens: int32 [B + 1], starts at 0 and rises by each image's length (0..K).
        total: T, the last entry of `cu_seqlens`; read from it when None (a copy to the host on a GPU).

    Returns:
        Tensor: [T, D], same dtype. Differentiable in `padded`; the gradient behind a length is zero.

    Raises:
        RuntimeError: if `cu_seqlens` falls, does not start at 0 or names more than K positions (CPU).
    """
    if total is None:
        total = int(cu_seqlens[-1])
    if not use_kernels("pack", padded):
        return reference.pack(padded, cu_seqlens, total)
    out: Tensor = torch.ops.dove.pack(padded, cu_seqlens, total)
    return out


def unpack(packed: Tensor, cu_seqlens: Tensor, max_len: int) -> Tensor:
    """Spread packed tokens back to one padded row per image, with zeros behind each length.

    Args:
        packed: [T, D], float32 or bfloat16 (on CUDA also float16).
        cu_seqlens: int32 [B + 1] as for `pack`, ending at T.
        max_len: K, at least the longest length.

    Returns:
        Tensor: [B, K, D], same dtype, differentiable in `packed`.

    Raises:
        RuntimeError: if `cu_seqlens` falls, does not start at 0 or names a length above K (CPU).
    """
    if not use_kernels("unpack", packed):
        return reference.unpack(packed, cu_seqlens, max_len)
    out: Tensor = torch.ops.dove.unpack(packed, cu_seqlens, max_len)
    return out


def zero_tail(tokens: Tensor, lengths: Tensor) -> Tensor:
    """Set every position from its image's length on to exactly zero.

    Args:
        tokens: [B, K, D], float32 or bfloat16 (on CUDA also float16). Values behind a length are not read
            and may be NaN.
        lengths: int32 [B], 0..K.

    Returns:
        Tensor: [B, K, D], same dtype, contiguous. Differentiable in `tokens`; no gradient behind a length.

    Raises:
        RuntimeError: if `lengths` is not int32 [B] or, on the CPU, leaves 0..K.
    """
    if not use_kernels("zero_tail", tokens):
        return reference.zero_tail(tokens, lengths)
    out: Tensor = torch.ops.dove.zero_tail(tokens, lengths)
    return out


def lengths_to_cu_seqlens(lengths: Tensor) -> Tensor:
    """Where each image begins and ends when images of these lengths are packed one after the other.

    Args:
        lengths: integers [B], none negative.

    Returns:
        Tensor: int32 [B + 1], 0 and then the running sum.
    """
    if lengths.dim() != 1 or lengths.is_floating_point():
        raise ValueError(f"lengths must be integers [B], got {lengths.dtype} {list(lengths.shape)}")
    if not use_kernels("lengths_to_cu_seqlens", lengths):
        return reference.lengths_to_cu_seqlens(lengths)
    out: Tensor = torch.ops.dove.lengths_to_cu_seqlens(lengths)
    return out


def _check_dtype(op: str, cu_seqlens: Tensor) -> None:
    if cu_seqlens.dtype != torch.int32 or cu_seqlens.dim() != 1 or cu_seqlens.numel() < 1:
        raise RuntimeError(
            f"dove::{op}: cu_seqlens must be int32 [B + 1], got {cu_seqlens.dtype} {list(cu_seqlens.shape)}"
        )


def _check_lengths(op: str, cu_seqlens: Tensor, total: int) -> Tensor:
    _check_dtype(op, cu_seqlens)
    if int(cu_seqlens[-1]) != total:
        raise RuntimeError(
            f"dove::{op}: cu_seqlens ends at {int(cu_seqlens[-1])}, but there are {total} packed rows"
        )
    return cu_seqlens.contiguous()


def _pack_cpu(padded: Tensor, cu_seqlens: Tensor, total: int) -> Tensor:
    cu_seqlens = _check_lengths("pack", cu_seqlens, total)
    if padded.stride(-1) != 1:
        padded = padded.contiguous()
    batch, max_len, width = padded.shape
    out = padded.new_empty(total, width)
    _C.cpu_pack(
        padded.data_ptr(), out.data_ptr(), cu_seqlens.data_ptr(), batch, max_len, width,
        padded.element_size(), padded.stride(0), padded.stride(1), torch.get_num_threads(),
    )  # fmt: skip
    return out


def _unpack_cpu(packed: Tensor, cu_seqlens: Tensor, max_len: int) -> Tensor:
    cu_seqlens = _check_lengths("unpack", cu_seqlens, packed.shape[0])
    packed = packed.contiguous()
    batch, width = cu_seqlens.numel() - 1, packed.shape[1]
    out = packed.new_empty(batch, max_len, width)
    _C.cpu_unpack(
        packed.data_ptr(), out.data_ptr(), cu_seqlens.data_ptr(), batch, max_len, width,
        packed.element_size(), out.stride(0), out.stride(1), torch.get_num_threads(),
    )  # fmt: skip
    return out


def _lengths_of(lengths: Tensor, batch: int) -> Tensor:
    if lengths.dtype != torch.int32 or lengths.shape != (batch,):
        raise RuntimeError(
            f"dove::zero_tail: lengths must be int32 [{batch}], got {lengths.dtype} {list(lengths.shape)}"
        )
    return lengths.contiguous()


def _zero_tail_cpu(tokens: Tensor, lengths: Tensor) -> Tensor:
    batch, max_len, width = tokens.shape
    lengths = _lengths_of(lengths, batch)
    if tokens.stride(-1) != 1:
        tokens = tokens.contiguous()
    out = tokens.new_empty(tokens.shape)
    _C.cpu_zero_tail(
        tokens.data_ptr(), out.data_ptr(), lengths.data_ptr(), batch, max_len, width, tokens.element_size(),
        tokens.stride(0), tokens.stride(1), torch.get_num_threads(),
    )  # fmt: skip
    return out


def _pack_cuda(padded: Tensor, cu_seqlens: Tensor, total: int) -> Tensor:
    _check_dtype("pack", cu_seqlens)
    cu_seqlens = cu_seqlens.contiguous()
    if padded.stride(-1) != 1:
        padded = padded.contiguous()
    batch, max_len, width = padded.shape
    out = padded.new_empty(total, width)
    _C.cuda_pack(
        padded.data_ptr(), out.data_ptr(), cu_seqlens.data_ptr(), batch, max_len, width,
        padded.element_size(), padded.stride(0), padded.stride(1), total, stream_of(padded),
    )  # fmt: skip
    return out


def _unpack_cuda(packed: Tensor, cu_seqlens: Tensor, max_len: int) -> Tensor:
    _check_dtype("unpack", cu_seqlens)
    cu_seqlens, packed = cu_seqlens.contiguous(), packed.contiguous()
    batch, width = cu_seqlens.numel() - 1, packed.shape[1]
    out = packed.new_empty(batch, max_len, width)
    _C.cuda_unpack(
        packed.data_ptr(), out.data_ptr(), cu_seqlens.data_ptr(), batch, max_len, width,
        packed.element_size(), out.stride(0), out.stride(1), packed.shape[0], stream_of(packed),
    )  # fmt: skip
    return out


def _zero_tail_cuda(tokens: Tensor, lengths: Tensor) -> Tensor:
    batch, max_len, width = tokens.shape
    lengths = _lengths_of(lengths, batch)
    if tokens.stride(-1) != 1:
        tokens = tokens.contiguous()
    out = tokens.new_empty(tokens.shape)
    _C.cuda_zero_tail(
        tokens.data_ptr(), out.data_ptr(), lengths.data_ptr(), batch, max_len, width, tokens.element_size(),
        tokens.stride(0), tokens.stride(1), stream_of(tokens),
    )  # fmt: skip
    return out


def _cu_seqlens_cuda(lengths: Tensor) -> Tensor:
    lengths = lengths.to(torch.int32).contiguous()
    out = lengths.new_empty(lengths.shape[0] + 1)
    _C.cuda_cu_seqlens(lengths.data_ptr(), out.data_ptr(), lengths.shape[0], stream_of(lengths))
    return out


def _pack_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    padded, cu_seqlens, _ = inputs
    ctx.save_for_backward(cu_seqlens)
    ctx.max_len = padded.shape[1]


def _pack_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (cu_seqlens,) = ctx.saved_tensors
    return torch.ops.dove.unpack(grad.contiguous(), cu_seqlens, ctx.max_len), None, None


def _unpack_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    packed, cu_seqlens, _ = inputs
    ctx.save_for_backward(cu_seqlens)
    ctx.total = packed.shape[0]


def _unpack_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (cu_seqlens,) = ctx.saved_tensors
    return torch.ops.dove.pack(grad, cu_seqlens, ctx.total), None, None


def _zero_tail_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _zero_tail_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (lengths,) = ctx.saved_tensors
    return torch.ops.dove.zero_tail(grad, lengths), None


register(
    "pack(Tensor padded, Tensor cu_seqlens, SymInt total) -> Tensor",
    cpu=_pack_cpu,
    cuda=_pack_cuda,
    fake=lambda padded, cu_seqlens, total: padded.new_empty(total, padded.shape[2]),
    reference=reference.pack,
    setup_context=_pack_setup,
    backward=_pack_backward,
)
register(
    "unpack(Tensor packed, Tensor cu_seqlens, SymInt max_len) -> Tensor",
    cpu=_unpack_cpu,
    cuda=_unpack_cuda,
    fake=lambda packed, cu_seqlens, max_len: packed.new_empty(
        cu_seqlens.shape[0] - 1, max_len, packed.shape[1]
    ),
    reference=reference.unpack,
    setup_context=_unpack_setup,
    backward=_unpack_backward,
)
register(
    "zero_tail(Tensor tokens, Tensor lengths) -> Tensor",
    cpu=_zero_tail_cpu,
    cuda=_zero_tail_cuda,
    fake=lambda tokens, lengths: tokens.new_empty(tokens.shape),
    reference=reference.zero_tail,
    setup_context=_zero_tail_setup,
    backward=_zero_tail_backward,
)
register(
    "lengths_to_cu_seqlens(Tensor lengths) -> Tensor",
    cpu=reference.lengths_to_cu_seqlens,
    cuda=_cu_seqlens_cuda,
    fake=lambda lengths: lengths.new_empty(lengths.shape[0] + 1, dtype=torch.int32),
    reference=reference.lengths_to_cu_seqlens,
)
