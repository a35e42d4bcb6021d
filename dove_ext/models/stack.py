"""The transformer of the token generator and the token decoder: GPT-NeoX in Pythia-70M's shape (A.1).

The names of the parameters are those of the public Pythia checkpoints.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dove_ext import ops
from dove_ext.config import StackConfig
from dove_ext.models.cache import KeyValueCache
from dove_ext.models.packed import Linear, Rows
from dove_ext.ops.backend import autocasts, has_kernels


def rotary_table(length: int, dim: int, base: float, device: torch.device) -> Tensor:
    """Cosines and sines of the rotary angles of positions 0..length-1: float32 [length, dim], [cos | sin]."""
    frequency = base ** -(torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim)
    angle = torch.arange(length, dtype=torch.float32, device=device)[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def fuses(x: Tensor) -> bool:
    """Whether a block's element-wise work runs fused: on CUDA."""
    return x.is_cuda and has_kernels(x)


def lowered(x: Tensor) -> Tensor:
    """`x` in the dtype that matrix products have under autocast, if it is on: fused work wants one dtype."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if fuses(x) and autocasts(kind) else x


class Kept(NamedTuple):
    """The positions of B sequences of N that have keys and values: the first ones of each.

    Attributes:
        queries: int32 [B + 1], multiples of N: all positions have queries.
        keys: int32 [B + 1], where each sequence's kept positions begin and end when they are packed.
        total: how many are kept, the last entry of `keys`.
    """

    queries: Tensor
    keys: Tensor
    total: int

    @classmethod
    def of(cls, lengths: Tensor, total: int, positions: int) -> Kept:
        """The first `lengths` (int32 [B], their sum is `total`) of so many positions."""
        queries = torch.arange(len(lengths) + 1, dtype=torch.int32, device=lengths.device) * positions
        return cls(queries, ops.lengths_to_cu_seqlens(lengths), total)


def of_heads(heads: int, parts: slice, rows: Tensor) -> Tensor:
    """Of rows that are [q | k | v] of one head after the other those of some parts."""
    return rows.unflatten(0, (heads, 3, -1))[:, parts].flatten(0, 2)


class Attention(nn.Module):
    """Multi-head attention with the first dimensions of each head rotated."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query_key_value = Linear(config.hidden, 3 * config.hidden)  # per head [q | k | v]
        self._queries = Rows(partial(of_heads, config.heads, slice(1)))
        self._keys_values = Rows(partial(of_heads, config.heads, slice(1, 3)))
        self.dense = Linear(config.hidden, config.hidden)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, N, H, D] as views of one projection."""
        q, k, v = self.query_key_value(x).unflatten(-1, (self.heads, -1)).chunk(3, dim=-1)
        return q, k, v

    def to_kept(self, x: Tensor, kept: Kept, rotary: Tensor) -> Tensor:
        """All positions of x [B, N, hidden] attend to the kept ones; nobody makes keys of the others."""
        q = self.query_key_value.of_rows(self._queries, x).unflatten(-1, (self.heads, -1))
        kv = self.query_key_value.of_rows(self._keys_values, ops.pack(x, kept.keys, kept.total))
        k, v = kv.unflatten(-1, (self.heads, -1)).chunk(2, dim=-1)
        attended = ops.attention(
            q.flatten(0, 1), k, v, prefix=None, rotary=rotary,
            cu_seqlens_q=kept.queries, cu_seqlens_k=kept.keys,
        )  # fmt: skip
        return attended.view(x.shape)


class MLP(nn.Module):
    """Two linear maps around an exact GELU."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = Linear(config.hidden, config.mlp)
        self.dense_4h_to_h = Linear(config.mlp, config.hidden)

    def add_to(self, other: Tensor, x: Tensor) -> Tensor:
        """Sum other + mlp(x), of [..., hidden] each."""
        return self.dense_4h_to_h.add_to(other, self.dense_h_to_4h(x, gelu=True))


class Layer(nn.Module):
    """x + attention(norm(x)) + mlp(norm'(x)): both branches read the same x."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden, eps=config.layer_norm_eps)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden, eps=config.layer_norm_eps)
        self.attention = Attention(config)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Tensor,
        rotary: Tensor,
        prefix: int | None,
        kv_lens: Tensor | None = None,
        cache: tuple[KeyValueCache, int] | None = None,
        last: int | None = None,
        kept: Kept | None = None,
    ) -> Tensor:
        """[B, N, hidden] to the same; see `Stack.forward` for the arguments."""
        # Without a shortcut the time encodings are the same for all images, one row expanded to the batch
        # (stride 0): norms and projections of that one row are enough.
        for_attention, for_mlp = self._norms(x[:1] if x.stride(0) == 0 else x)
        if kept is not None:
            return self._join(x, self.attention.to_kept(for_attention, kept, rotary), for_mlp)
        q, k, v = (t.expand(x.shape[0], -1, -1, -1) for t in self.attention.project(for_attention))
        if last is not None:
            x, for_mlp, q = x[:, -last:], for_mlp[:, -last:], q[:, -last:]
        if cache is None:
            attended = ops.attention(q, k, v, prefix=prefix, rotary=rotary, kv_lens=kv_lens)
        else:
            attended = cache[0].attention(cache[1], q, k, v, prefix=prefix, rotary=rotary)
        return self._join(x, attended.flatten(2), for_mlp)

    def _norms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = self.input_layernorm, self.post_attention_layernorm
        if fuses(x):
            return ops.pair_norm(x, first.weight, first.bias, second.weight, second.bias, eps=first.eps)
        return first(x), second(x)

    def _join(self, x: Tensor, attended: Tensor, for_mlp: Tensor) -> Tensor:
        if not fuses(x):
            return self.mlp.add_to(self.attention.dense.add_to(x, attended), for_mlp)
        dense, up, down = self.attention.dense, self.mlp.dense_h_to_4h, self.mlp.dense_4h_to_h
        inner = ops.bias_gelu(F.linear(for_mlp, up.weight), up.bias)
        branches = F.linear(attended, dense.weight), F.linear(inner, down.weight).expand_as(x).contiguous()
        return ops.add_branches(x, *branches, dense.bias, down.bias)


class Stack(nn.Module):
    """All layers and the final LayerNorm."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.final_layer_norm = nn.LayerNorm(config.hidden, eps=config.layer_norm_eps)
        self._table: Tensor | None = None

    def forward(
        self,
        x: Tensor,
        *,
        prefix: int | None,
        kv_lens: Tensor | None = None,
        cache: KeyValueCache | None = None,
        last: int | None = None,
        total: int | None = None,
    ) -> Tensor:
        """Hidden states after the final LayerNorm.

        Args:
            x: [B, N, hidden], inputs of the next N positions (of all, without a cache).
            prefix: every position sees the first `prefix` ones besides itself and those before it;
                0 is causal attention, None is full attention.
            kv_lens: int32 [B]; positions from here on are invisible. Not with a cache.
            cache: keys and values of earlier positions; this block is appended to it.
            last: compute the output of only the last so many positions; for those before them the last
                layer computes keys and values alone. None: all.
            total: the sum of `kv_lens`; under full attention invisible positions then get no keys and
                values. None: not known to the caller.

        Returns:
            Tensor: [B, last or N, hidden].
        """
        x, count = lowered(x), x.shape[1]
        rotary = self._rotary(count if cache is None else cache.begin(count), x)
        kept = None
        if kv_lens is not None and total is not None and prefix is None and cache is None and last is None:
            kept = Kept.of(kv_lens, total, count)
        for i, layer in enumerate(self.layers):
            wanted = last if i == len(self.layers) - 1 else None
            x = layer(x, rotary, prefix, kv_lens, None if cache is None else (cache, i), wanted, kept)
        if cache is not None:
            cache.finish(count)
        out: Tensor = self.final_layer_norm(x)
        return out

    def states(self, x: Tensor, layers: int, *, prefix: int | None) -> Tensor:
        """What comes out of the first `layers` layers for x [B, N, hidden], before any final LayerNorm."""
        x, rotary = lowered(x), self._rotary(x.shape[1], x)
        for layer in self.layers[:layers]:
            x = layer(x, rotary, prefix)
        return x

    def finish(self, x: Tensor, *, prefix: int | None, last: int) -> Tensor:
        """`forward` from what `states` gave for all layers but the last one: [B, last, hidden]."""
        out: Tensor = self.final_layer_norm(
            self.layers[-1](x, self._rotary(x.shape[1], x), prefix, last=last)
        )
        return out

    def _rotary(self, length: int, like: Tensor) -> Tensor:
        """The table of so many positions, made once: it is float32 and the same for all passes and dtypes."""
        shape = self.config
        if torch.compiler.is_compiling() or type(like) is not Tensor:  # traced
            return rotary_table(length, shape.rotary_dim, shape.rotary_base, like.device)
        table = self._table
        if table is None or table.shape[0] < length or table.device != like.device:
            with torch.inference_mode(False):  # or training could not save it for its backward pass
                table = rotary_table(length, shape.rotary_dim, shape.rotary_base, like.device)
            self._table = table
        return table[:length]

    def reset_parameters(self) -> None:
        """Initialise as GPT-NeoX does for training from scratch: normal 0.02, branches scaled by depth."""
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                nn.init.ones_(parameter) if name.endswith("norm.weight") else nn.init.zeros_(parameter)
            else:
                branch_end = name.endswith(("attention.dense.weight", "dense_4h_to_h.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * len(self.layers)) ** 0.5 if branch_end else 0.02)
