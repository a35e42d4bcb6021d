"""The batches of one `DoveModel.encode` become one result, with a single wait for the device.

A GPU works behind the host's back: whoever reads a value from it waits until all that was queued is done. So
lengths stay there while batches are queued, tokens are packed into room for all of them, and at the end one
copy tells the host how many were kept and whether the images were in range.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dove_ext import ops
from dove_ext.images.prepare import check_ranges
from dove_ext.models.query import Query
from dove_ext.ops.backend import has_kernels
from dove_ext.tokens.lengths import LengthRule, lengths_for_budget


class Encoded(NamedTuple):
    """What becomes of one batch of B images.

    Attributes:
        tokens: [B, n, D], not cut at the lengths; or packed, [T, D] with T at least the lengths' sum.
        lengths: int32 [B], 1..n.
        p_eos: float32 [B, K] where it is wanted, else None.
        psnr: float32 [B], what the lengths reach, where a quality was asked for, else None.
        relevance: float32 [B, P], how much each place counts, where not all count alike; else None.
        log_odds: float32 [B, K] of EOS, where images are compared by them, else None.
    """

    tokens: Tensor
    lengths: Tensor
    p_eos: Tensor | None = None
    psnr: Tensor | None = None
    relevance: Tensor | None = None
    log_odds: Tensor | None = None

    def of_first(self, count: int) -> Encoded:
        """Those of the first `count` images."""
        tokens = self.tokens[:count] if self.tokens.dim() == 3 else self.tokens
        rest = (None if x is None else x[:count] for x in self[1:])
        return Encoded(tokens, *rest)  # type: ignore[arg-type]


Encode = Callable[[Tensor, Query | None], Encoded]
"""Of pixels [B, 3, S, S] (see `images.prepare.Squares`) and query."""


def packed(batch: Encoded) -> Encoded:
    """The batch with its tokens packed; on a GPU with room for all n tokens of every image."""
    tokens, lengths = batch.tokens, batch.lengths
    if not has_kernels(tokens):
        return batch  # plain PyTorch has to be told how many there are: see `join`
    cu_seqlens = ops.lengths_to_cu_seqlens(lengths)
    room = tokens.shape[0] * tokens.shape[1] if tokens.is_cuda else int(cu_seqlens[-1])
    return batch._replace(tokens=ops.pack(tokens, cu_seqlens, room))


def join(batches: Sequence[Encoded], rule: LengthRule, unread: Sequence[tuple[str, Tensor]]) -> Encoded:
    """All batches as one.

    Args:
        batches: at least one; padded ones where the rule has a budget, which all images share.
        rule: how lengths are chosen.
        unread: value ranges of the images that nobody has looked at (`images.prepare.Squares`).

    Returns:
        Encoded: of all images, its tokens packed, [T, D].

    Raises:
        ImageError: if one of these ranges is no picture's.
    """
    lengths = torch.cat([batch.lengths for batch in batches])
    beside = [_together(list(parts)) for parts in list(zip(*batches, strict=True))[2:]]
    log_odds = beside[-1]
    if rule.token_budget is not None and log_odds is not None:
        # Whose tokens they are is known on the device alone; their sum is known here.
        lengths = lengths_for_budget(log_odds, rule.token_budget, rule.least)
        batches = [Encoded(torch.cat([batch.tokens for batch in batches]), lengths)]
    parts = lengths.split([len(batch.lengths) for batch in batches])
    sums: list[Tensor] = []
    if rule.token_budget is not None:
        kept = [rule.token_budget]
    elif rule.num_tokens is not None:
        kept = [rule.num_tokens * len(part) for part in parts]
    else:
        kept, sums = [], [part.sum().double()[None] for part in parts]
    unseen = [*sums, *(values for _, values in unread)]
    read = torch.cat(unseen).tolist() if unseen else []
    kept += [int(value) for value in read[: len(sums)]]
    found = iter(read[len(sums) :])
    check_ranges([(name, (next(found), next(found))) for name, _ in unread])
    tokens = [
        batch.tokens[:total]
        if batch.tokens.dim() == 2
        else ops.pack(batch.tokens, ops.lengths_to_cu_seqlens(part), total)
        for batch, part, total in zip(batches, parts, kept, strict=True)
    ]
    return Encoded(torch.cat(tokens), lengths, *beside)


def _together(parts: Sequence[Tensor | None]) -> Tensor | None:
    there = [part for part in parts if part is not None]
    return torch.cat(there) if there else None
