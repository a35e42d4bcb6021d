"""Variable-length packing between padded [B, K, D] and packed [T, D] tokens, and zeros behind lengths.

Lengths on a CUDA device are not checked, since that would wait for the device: a length outside 0..K counts
as the nearer of the two, and rows beyond the packed side are left out.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from dove_ext import _C
from dove_ext.ops import reference
from dove_ext.ops.backend import use_kernels
from dove_ext.ops.library import call, register


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


def _check_cu_seqlens(op: str, device: str, cu_seqlens: Tensor, total: int) -> Tensor:
    """`cu_seqlens`, dense. Where it ends is looked at on the CPU only: a GPU would have to be waited for."""
    if cu_seqlens.dtype != torch.int32 or cu_seqlens.dim() != 1 or cu_seqlens.numel() < 1:
        raise RuntimeError(
            f"dove::{op}: cu_seqlens must be int32 [B + 1], got {cu_seqlens.dtype} {list(cu_seqlens.shape)}"
        )
    if device == "cpu" and int(cu_seqlens[-1]) != total:
        raise RuntimeError(
            f"dove::{op}: cu_seqlens ends at {int(cu_seqlens[-1])}, but there are {total} packed rows"
        )
    return cu_seqlens.contiguous()


def _move(
    kernel: str, source: Tensor, target: Tensor, padded: Tensor, cu_seqlens: Tensor, packed_rows: int
) -> Tensor:
    call(
        kernel, _C.PackArgs, source, source=source, target=target, cu_seqlens=cu_seqlens,
        batch=padded.shape[0], max_len=padded.shape[1], width=padded.shape[2],
        element_bytes=padded.element_size(), padded_stride_b=padded.stride(0),
        padded_stride_k=padded.stride(1), packed_rows=packed_rows,
    )  # fmt: skip
    return target


def _dense(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _pack(device: str, padded: Tensor, cu_seqlens: Tensor, total: int) -> Tensor:
    cu_seqlens = _check_cu_seqlens("pack", device, cu_seqlens, total)
    if padded.dim() != 3 or cu_seqlens.numel() != padded.shape[0] + 1:
        raise RuntimeError(
            f"dove::pack: padded must be [B, L, D] with cu_seqlens [B + 1], got {list(padded.shape)} and "
            f"{list(cu_seqlens.shape)}"
        )
    padded = _dense(padded)
    return _move(
        f"{device}_pack", padded, padded.new_empty(total, padded.shape[2]), padded, cu_seqlens, total
    )


def _unpack(device: str, packed: Tensor, cu_seqlens: Tensor, max_len: int) -> Tensor:
    total, width = packed.shape
    cu_seqlens = _check_cu_seqlens("unpack", device, cu_seqlens, total)
    packed = packed.contiguous()
    out = packed.new_empty(cu_seqlens.numel() - 1, max_len, width)
    return _move(f"{device}_unpack", packed, out, out, cu_seqlens, total)


def _zero_tail(device: str, tokens: Tensor, lengths: Tensor) -> Tensor:
    batch, max_len, width = tokens.shape
    if lengths.dtype != torch.int32 or lengths.shape != (batch,):
        raise RuntimeError(
            f"dove::zero_tail: lengths must be int32 [{batch}], got {lengths.dtype} {list(lengths.shape)}"
        )
    tokens = _dense(tokens)
    out = tokens.new_empty(tokens.shape)
    call(
        f"{device}_zero_tail", _C.ZeroTailArgs, tokens, source=tokens, target=out,
        lengths=lengths.contiguous(), batch=batch, max_len=max_len, width=width,
        element_bytes=tokens.element_size(), source_stride_b=tokens.stride(0),
        source_stride_k=tokens.stride(1),
    )  # fmt: skip
    return out


def _cu_seqlens_cuda(lengths: Tensor) -> Tensor:
    lengths = lengths.to(torch.int32).contiguous()
    out = lengths.new_empty(lengths.shape[0] + 1)
    call(
        "cuda_cu_seqlens",
        _C.CuSeqlensArgs,
        lengths,
        lengths=lengths,
        cu_seqlens=out,
        batch=lengths.shape[0],
    )
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
    cpu=partial(_pack, "cpu"),
    cuda=partial(_pack, "cuda"),
    fake=lambda padded, cu_seqlens, total: padded.new_empty(total, padded.shape[2]),
    reference=reference.pack,
    setup_context=_pack_setup,
    backward=_pack_backward,
)
register(
    "unpack(Tensor packed, Tensor cu_seqlens, SymInt max_len) -> Tensor",
    cpu=partial(_unpack, "cpu"),
    cuda=partial(_unpack, "cuda"),
    fake=lambda packed, cu_seqlens, max_len: packed.new_empty(
        cu_seqlens.shape[0] - 1, max_len, packed.shape[1]
    ),
    reference=reference.unpack,
    setup_context=_unpack_setup,
    backward=_unpack_backward,
)
register(
    "zero_tail(Tensor tokens, Tensor lengths) -> Tensor",
    cpu=partial(_zero_tail, "cpu"),
    cuda=partial(_zero_tail, "cuda"),
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
