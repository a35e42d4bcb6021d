"""Causal, prefix and full attention with rotary embedding, over padded, packed or cached keys."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from dove_ext import _C
from dove_ext.ops import attention_reference, reference
from dove_ext.ops.attention_reference import FULL
from dove_ext.ops.backend import use_kernels
from dove_ext.ops.library import call, register


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    prefix: int | None = 0,
    rotary: Tensor | None = None,
    scale: float | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    kv_lens: Tensor | None = None,
) -> Tensor:
    """Attend from every query to the keys that it sees.

    out[i] = sum_j softmax_j(scale * rot(q[i]) . rot(k[j])) v[j]. Query i of a sequence stands at position
    p = Nk - Nq + i, so a block of new queries against a longer key/value cache needs no further argument. It
    sees key j if j <= p or j < prefix. Where all queries of a sequence see every key and are more than these
    (prefix >= Nk, Nq > Nk), query i stands at position i: the keys are those of the first positions. A query
    that sees no key gives zeros. Softmax and sums are float32; the score matrix is never stored. Scores
    of more than some 1e9, scale included, may give NaN.

    Args:
        q: [B, Nq, H, D], or packed [Tq, H, D]; float32 or bfloat16, on CUDA float16 too. Any strides:
            views of one projection [B, N, H, 3 * D] or slices of a cache are read in place (on CUDA rows of
            16-bit values must start at multiples of 16 bytes, others are copied). D is a multiple of 16, at
            most 256, on CUDA 128.
        k: [B, Nk, H, D] or packed [Tk, H, D], dtype of q. Keys are stored unrotated.
        v: as k.
        prefix: how many leading keys every query sees: 0 is causal, n a bidirectional prefix with a causal
            rest, None full attention.
        rotary: float32 [P, R], cosines in the first R / 2 columns and sines in the others, row = position,
            P at least the longest Nk and Nq. Rotates dimensions d and d + R / 2 of q and k, d < R / 2, in
            float32; needs Nq <= Nk, or that all queries see every key. Not differentiable.
        scale: above 0; D ** -0.5 when None.
        cu_seqlens_q: int32 [B + 1], starts at 0, rises by each sequence's queries up to Tq; packed form only.
        cu_seqlens_k: int32 [B + 1], likewise for keys up to Tk.
        kv_lens: int32 [B], padded form only: keys from kv_lens[b] on are invisible and may hold NaN.
            Positions still follow from Nk.

    Returns:
        Tensor: shape of q, contiguous, same dtype. Differentiable in q, k and v. A sequence's result depends
        neither on the rest of the batch nor on the number of threads.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together.
        TypeError: if compiled kernels are to run on another dtype.
        RuntimeError: if the head dimension has no kernel, or lengths are out of range. On CUDA lengths are
            not read back: wrong ones are clamped to the tensors, and rows they leave out are undefined.
    """
    _check(q, k, v, prefix, rotary, scale, cu_seqlens_q, cu_seqlens_k, kv_lens)
    if not use_kernels("attention", q, k, v):
        return reference.attention(
            q, k, v, prefix=prefix, rotary=rotary, scale=scale,
            cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, kv_lens=kv_lens,
        )  # fmt: skip
    out: Tensor = torch.ops.dove.attention(
        q, k, v, rotary, cu_seqlens_q, cu_seqlens_k, kv_lens,
        FULL if prefix is None else prefix, q.shape[-1] ** -0.5 if scale is None else scale,
    )[0]  # fmt: skip
    return out


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix: int | None,
    rotary: Tensor | None,
    scale: float | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    kv_lens: Tensor | None,
) -> None:
    packed = cu_seqlens_q is not None
    rank = 3 if packed else 4
    if (cu_seqlens_k is not None) != packed:
        raise ValueError("attention: give both cu_seqlens_q and cu_seqlens_k (packed) or neither (padded)")
    form = "[T, H, D] with cu_seqlens" if packed else "[B, N, H, D] without cu_seqlens"
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != rank:
            raise ValueError(f"attention: {name} must be {form}, got {list(x.shape)}")
        if x.dtype != q.dtype or x.device != q.device:
            raise ValueError(
                f"attention: q, k and v must share dtype and device, but q is {q.dtype} on {q.device} "
                f"and {name} is {x.dtype} on {x.device}"
            )
    if k.shape != v.shape:
        raise ValueError(f"attention: k and v must have one shape, got {list(k.shape)} and {list(v.shape)}")
    if q.shape[-2:] != k.shape[-2:] or (not packed and q.shape[0] != k.shape[0]):
        raise ValueError(
            "attention: q and k must agree in batch, heads and head dimension, "
            f"got {list(q.shape)} and {list(k.shape)}"
        )
    if prefix is not None and prefix < 0:
        raise ValueError(f"attention: prefix must be at least 0, or None for full attention, got {prefix}")
    if scale is not None and not scale > 0:
        raise ValueError(f"attention: scale must be above 0, got {scale}")
    lengths = {"cu_seqlens_q": cu_seqlens_q, "cu_seqlens_k": cu_seqlens_k, "kv_lens": kv_lens}
    for name, lens in lengths.items():
        if lens is not None and (lens.dtype != torch.int32 or lens.dim() != 1 or lens.device != q.device):
            raise ValueError(
                f"attention: {name} must be one-dimensional int32 on {q.device}, "
                f"got {lens.dtype} {list(lens.shape)} on {lens.device}"
            )
    if cu_seqlens_q is not None and cu_seqlens_k is not None:
        if kv_lens is not None:
            raise ValueError("attention: kv_lens is for the padded form; with cu_seqlens, leave it None")
        if cu_seqlens_q.shape != cu_seqlens_k.shape or cu_seqlens_q.shape[0] < 1:
            raise ValueError(
                "attention: cu_seqlens_q and cu_seqlens_k must both be [B + 1], "
                f"got {list(cu_seqlens_q.shape)} and {list(cu_seqlens_k.shape)}"
            )
    elif kv_lens is not None and kv_lens.shape[0] != q.shape[0]:
        raise ValueError(f"attention: kv_lens must be [{q.shape[0]}], got {list(kv_lens.shape)}")
    if rotary is not None:
        _check_rotary(q, k, rotary, prefix, packed)


def _check_rotary(q: Tensor, k: Tensor, rotary: Tensor, prefix: int | None, packed: bool) -> None:
    if rotary.dim() != 2 or rotary.shape[1] % 2 or rotary.shape[1] > q.shape[-1]:
        raise ValueError(
            f"attention: rotary must be [positions, R] with R even and at most {q.shape[-1]}, "
            f"got {list(rotary.shape)}"
        )
    if not rotary.is_floating_point() or rotary.device != q.device:
        raise ValueError(
            f"attention: rotary must be floating point on {q.device}, got {rotary.dtype} on {rotary.device}"
        )
    if packed:
        return
    if rotary.shape[0] < max(q.shape[1], k.shape[1]):
        raise ValueError(
            f"attention: rotary needs a row for each of the {k.shape[1]} keys and {q.shape[1]} queries, "
            f"got {rotary.shape[0]} rows"
        )
    if q.shape[1] > k.shape[1] and prefix is not None and prefix < k.shape[1]:
        raise ValueError(
            "attention: with rotary, more queries than keys must all see every key; pass prefix=None, "
            f"got {q.shape[1]} queries, {k.shape[1]} keys and prefix={prefix}"
        )


def _dense(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _aligned(x: Tensor) -> Tensor:
    """Rows that start at multiples of 16 bytes, as the tensor-core kernels load them."""
    unit = 16 // x.element_size()
    fits = x.data_ptr() % 16 == 0 and all(stride % unit == 0 for stride in x.stride()[:-1])
    return x if x.stride(-1) == 1 and fits else x.clone(memory_format=torch.contiguous_format)


def _rows(x: Tensor) -> tuple[Tensor, int, int, int]:
    return x, x.stride(0) if x.dim() == 4 else 0, x.stride(-3), x.stride(-2)


def _contiguous(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else x.to(dtype).contiguous()


def _run(
    kernel: str,
    rows: dict[str, Tensor],
    lse: Tensor,
    rotary: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    kv_lens: Tensor | None,
    prefix: int,
    scale: float,
) -> None:
    q, k = rows["q"], rows["k"]
    heads, head_dim = q.shape[-2:]
    largest = 256 if kernel.startswith("cpu_") else 128
    if head_dim % 16 or head_dim not in range(16, largest + 1):
        raise RuntimeError(
            f"dove::attention: the head dimension must be a multiple of 16 up to {largest}, "
            f"got {head_dim}; call dove_ext.set_backend('torch') for others"
        )
    rotary_rows, rotary_dim = (0, 0) if rotary is None else rotary.shape
    call(
        kernel, _C.AttentionArgs, lse, **{name: _rows(tensor) for name, tensor in rows.items()}, lse=lse,
        rotary=_contiguous(rotary, torch.float32), rotary_rows=rotary_rows, rotary_dim=rotary_dim,
        cu_seqlens_q=_contiguous(cu_seqlens_q, torch.int32),
        cu_seqlens_k=_contiguous(cu_seqlens_k, torch.int32), kv_lens=_contiguous(kv_lens, torch.int32),
        batch=q.shape[0] if cu_seqlens_q is None else cu_seqlens_q.shape[0] - 1, heads=heads,
        head_dim=head_dim, len_q=q.shape[-3], len_k=k.shape[-3], prefix=prefix, scale=scale, dtype=q.dtype,
    )  # fmt: skip


_PREPARE = {"cpu": _dense, "cuda": _aligned}


def _forward(device: str, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    out, lse = _fake(q, k, v, *rest)
    prepare = _PREPARE[device]
    _run(f"{device}_attention", {"q": prepare(q), "k": prepare(k), "v": prepare(v), "out": out}, lse, *rest)
    return out, lse


def _gradients(
    device: str, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    read = {"q": q, "k": k, "v": v, "out": out, "grad_out": grad}
    rows = {name: _PREPARE[device](x) for name, x in read.items()}
    rows |= {"grad_q": dq, "grad_k": dk, "grad_v": dv}
    _run(f"{device}_attention_backward", rows, lse.contiguous(), *rest)
    return dq, dk, dv


def _fake(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    *batch, length, heads = q.shape[:-1]
    return q.new_empty(q.shape), q.new_empty((*batch, heads, length), dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, *tensors, prefix, scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, *output, *tensors)
    ctx.prefix, ctx.scale = prefix, scale


def _backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    dq, dk, dv = torch.ops.dove.attention_backward(grad, *ctx.saved_tensors, ctx.prefix, ctx.scale)
    return dq, dk, dv, None, None, None, None, None, None


_KEYS = (
    "Tensor? rotary, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? kv_lens, SymInt prefix, float scale"
)

register(
    f"attention(Tensor q, Tensor k, Tensor v, {_KEYS}) -> (Tensor, Tensor)",
    cpu=partial(_forward, "cpu"),
    cuda=partial(_forward, "cuda"),
    fake=_fake,
    reference=attention_reference.attention_op,
    setup_context=_setup_context,
    backward=_backward,
)
register(
    f"attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, {_KEYS})"
    " -> (Tensor, Tensor, Tensor)",
    cpu=partial(_gradients, "cpu"),
    cuda=partial(_gradients, "cuda"),
    fake=lambda grad, q, k, v, *_: (q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)),
    reference=attention_reference.attention_backward_op,
)
