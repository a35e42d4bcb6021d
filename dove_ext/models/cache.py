"""Keys and values that a stack has seen, also where each image has seen another number of positions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dove_ext import ops
from dove_ext.config import StackConfig


class Gaps(NamedTuple):
    """Keys of B images in a cache of C positions each, packed where they are: image, gap, image, gap, ...

    The gaps, which no query looks at, are sequences of their own. So nothing is moved, and sizes depend on
    no length.

    Attributes:
        rows: int64 [B * n], where the n newest positions of each image are in the B * C of the cache.
        queries: int32 [2 B + 1], n for each image and 0 for each gap, summed.
        keys: int32 [2 B + 1], likewise an image's keys up to the newest, and what is left of C.
    """

    rows: Tensor
    queries: Tensor
    keys: Tensor

    @classmethod
    def behind(cls, ends: Tensor, count: int, capacity: int) -> Gaps:
        """Where `count` positions go behind the first `ends` (int32 [B]) of a cache of this capacity."""
        starts = torch.arange(len(ends), device=ends.device) * capacity
        rows = (starts + ends)[:, None] + torch.arange(count, device=ends.device)
        new = ends + count
        counts = torch.stack([torch.full_like(ends, count), torch.zeros_like(ends)], dim=1)
        kept = torch.stack([new, capacity - new], dim=1)
        cu_seqlens = (ops.lengths_to_cu_seqlens(x.flatten()) for x in (counts, kept))
        return cls(rows.flatten(), *cu_seqlens)


class KeyValueCache:
    """Keys (not yet rotated) and values of every layer for the positions seen so far.

    Attributes:
        entries: [layers, 2, B, C, H, D], room for C positions of each image.
        length: positions seen, the same number for all images, or the most of any.
        ends: int32 [B], where images end at positions of their own; None: all at `length`.
    """

    def __init__(self, config: StackConfig, batch: int, capacity: int, like: Tensor) -> None:
        shape = (config.layers, 2, batch, capacity, config.heads, config.head_dim)
        self.entries = like.new_empty(shape)
        self.length = 0
        self.ends: Tensor | None = None
        self._gaps: Gaps | None = None

    @classmethod
    def of(cls, held: Tensor, config: StackConfig, room: int, like: Tensor) -> KeyValueCache:
        """Keys and values [B, layers, 2, P, H, D] that are there, copied, with room behind them."""
        count = held.shape[3]
        cache = cls(config, held.shape[0], count + room, like)
        cache.entries[:, :, :, :count] = held.movedim(0, 2)
        cache.length = count
        return cache

    def begin(self, count: int) -> int:
        """So many positions are next; returns how many positions a rotary table needs for them."""
        if self.ends is None:
            return self.length + count
        capacity = self.entries.shape[3]
        self._gaps = Gaps.behind(self.ends, count, capacity)
        return capacity

    def finish(self, count: int) -> None:
        """All layers have stored so many positions."""
        self.length += count
        if self.ends is not None:
            self.ends = self.ends + count

    def attention(
        self, layer: int, q: Tensor, key: Tensor, value: Tensor, *, prefix: int | None, rotary: Tensor
    ) -> Tensor:
        """Store keys and values [B, n, H, D] behind those of a layer; the last queries [B, m, H, D] attend.

        Returns:
            Tensor: [B, m, H, D].
        """
        if self._gaps is None:
            end = self.length + key.shape[1]
            self.entries[layer, 0, :, self.length : end] = key
            self.entries[layer, 1, :, self.length : end] = value
            k, v = self.entries[layer, 0, :, :end], self.entries[layer, 1, :, :end]
            return ops.attention(q, k, v, prefix=prefix, rotary=rotary)
        k, v = (self.entries[layer, i].view(-1, *key.shape[2:]) for i in (0, 1))
        k.index_copy_(0, self._gaps.rows, key.flatten(0, 1))
        v.index_copy_(0, self._gaps.rows, value.flatten(0, 1))
        attended = ops.attention(
            q.flatten(0, 1), k, v, prefix=prefix, rotary=rotary,
            cu_seqlens_q=self._gaps.queries, cu_seqlens_k=self._gaps.keys,
        )  # fmt: skip
        return attended.view(q.shape)
