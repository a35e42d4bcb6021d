"""Attention in plain PyTorch: the oracle of the tests (in float64) and the path for other devices."""

from __future__ import annotations

import torch
from torch import Tensor

FULL = 2**31 - 1
"""The `prefix` of the torch operator that stands for full attention."""


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
    """See `dove_ext.ops.attention`; every tensor op is a standard one, the scores are materialised."""
    prefix = FULL if prefix is None else prefix
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if cu_seqlens_q is None:
        return _padded(q, k, v, rotary, kv_lens, prefix, scale)[0]
    assert cu_seqlens_k is not None
    parts = [
        _padded(q_[None], k_[None], v_[None], rotary, None, prefix, scale)[0][0]
        for q_, k_, v_ in _sequences(q, k, v, cu_seqlens_q, cu_seqlens_k)
    ]
    return torch.cat(parts)


def attention_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rotary: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    kv_lens: Tensor | None,
    prefix: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The torch operator `dove::attention`: (out, log-sum-exp in float32)."""
    if cu_seqlens_q is None:
        out, lse, _ = _padded(q, k, v, rotary, kv_lens, prefix, scale)
        return out.contiguous(), lse
    assert cu_seqlens_k is not None
    out, lse = (
        torch.empty_like(q, memory_format=torch.contiguous_format),
        q.new_empty(q.shape[1::-1], dtype=torch.float32),
    )
    start = 0
    for q_, k_, v_ in _sequences(q, k, v, cu_seqlens_q, cu_seqlens_k):
        end = start + q_.shape[0]
        out_, lse_, _ = _padded(q_[None], k_[None], v_[None], rotary, None, prefix, scale)
        out[start:end], lse[:, start:end] = out_[0], lse_[0]
        start = end
    return out, lse


def attention_backward_op(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    rotary: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    kv_lens: Tensor | None,
    prefix: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The torch operator `dove::attention_backward`, by the formula: autograd does not record here."""
    if cu_seqlens_q is None:
        return _padded_backward(grad, q, k, v, rotary, kv_lens, prefix, scale)
    assert cu_seqlens_k is not None
    parts = [
        _padded_backward(g_[None], q_[None], k_[None], v_[None], rotary, None, prefix, scale)
        for (q_, k_, v_), g_ in zip(
            _sequences(q, k, v, cu_seqlens_q, cu_seqlens_k),
            grad.split(cu_seqlens_q.diff().tolist() or [0]),
            strict=True,
        )
    ]
    dq, dk, dv = (torch.cat([part[i][0] for part in parts]) for i in range(3))
    return dq, dk, dv


def _sequences(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor
) -> list[tuple[Tensor, Tensor, Tensor]]:
    # Without any sequence: one empty one, which keeps the result tied to its inputs.
    lengths_q, lengths_k = cu_seqlens_q.diff().tolist() or [0], cu_seqlens_k.diff().tolist() or [0]
    return list(zip(q.split(lengths_q), k.split(lengths_k), v.split(lengths_k), strict=True))


def _rotate(x: Tensor, rotary: Tensor | None, first: int, direction: float = 1.0) -> Tensor:
    """Rotate the leading dimensions of x [B, N, H, D] whose rows stand at positions first, first + 1, ..."""
    if rotary is None:
        return x
    table = rotary[first : first + x.shape[1], None]  # [N, 1, R]
    half = table.shape[-1] // 2
    wide = torch.promote_types(x.dtype, table.dtype)
    cos, sin = table[..., :half].to(wide), direction * table[..., half:].to(wide)
    x1, x2, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    rotated = torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1)
    return torch.cat([rotated.to(x.dtype), rest], dim=-1)


def _first_position(q: Tensor, k: Tensor, prefix: int) -> int:
    """Where query 0 stands; where all queries see every key, the keys are those of the first positions."""
    first = k.shape[1] - q.shape[1]
    return max(first, 0) if prefix >= k.shape[1] else first


def _visible(q: Tensor, k: Tensor, kv_lens: Tensor | None, prefix: int) -> Tensor:
    """Which query sees which key: bool, [Nq, Nk] or [B, 1, Nq, Nk]."""
    keys = torch.arange(k.shape[1], device=q.device)
    positions = torch.arange(q.shape[1], device=q.device) + (k.shape[1] - q.shape[1])
    visible = (keys <= positions[:, None]) | (keys < prefix)
    if kv_lens is not None:
        visible = visible & (keys < kv_lens[:, None])[:, None, None]
    return visible


def _without_invisible(x: Tensor, kv_lens: Tensor | None) -> Tensor:
    """Zero the rows behind each length: 0 * NaN would be NaN."""
    if kv_lens is None:
        return x
    keys = torch.arange(x.shape[1], device=x.device)
    return x.masked_fill((keys >= kv_lens[:, None])[..., None, None], 0)


def _padded(
    q: Tensor, k: Tensor, v: Tensor, rotary: Tensor | None, kv_lens: Tensor | None, prefix: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(out [B, Nq, H, D], log-sum-exp [B, H, Nq], probabilities [B, H, Nq, Nk])."""
    visible = _visible(q, k, kv_lens, prefix)
    k, v = _without_invisible(k, kv_lens), _without_invisible(v, kv_lens)
    q, k = _rotate(q, rotary, _first_position(q, k, prefix)), _rotate(k, rotary, 0)
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * scale
    scores = scores.masked_fill(~visible, float("-inf"))
    probabilities = scores.softmax(dim=-1).masked_fill(~visible, 0)  # a row of -inf has no softmax
    out = torch.einsum("bhij,bjhd->bihd", probabilities, v)
    return out, scores.float().logsumexp(dim=-1), probabilities


def _padded_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rotary: Tensor | None,
    kv_lens: Tensor | None,
    prefix: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    _, _, p = _padded(q, k, v, rotary, kv_lens, prefix, scale)
    first = _first_position(q, k, prefix)
    k, v = _without_invisible(k, kv_lens), _without_invisible(v, kv_lens)
    dp = torch.einsum("bihd,bjhd->bhij", grad, v)
    ds = p * (dp - (p * dp).sum(dim=-1, keepdim=True)) * scale
    dq = _rotate(torch.einsum("bhij,bjhd->bihd", ds, _rotate(k, rotary, 0)), rotary, first, -1.0)
    dk = _rotate(torch.einsum("bhij,bihd->bjhd", ds, _rotate(q, rotary, first)), rotary, 0, -1.0)
    dv = torch.einsum("bhij,bihd->bjhd", p, grad)
    return dq.contiguous(), dk.contiguous(), dv.contiguous()
