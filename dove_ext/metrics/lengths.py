"""What a model makes of a batch at fixed token counts and at the lengths that it chooses itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from dove_ext.models.query import Query

if TYPE_CHECKING:
    from dove_ext.models.dove import DoveModel

OWN = "own"  # the point at which the model chooses the length itself


class AtLength(NamedTuple):
    """One operating point of a model on a batch.

    Attributes:
        point: a token count as text, or `OWN`.
        images: float32 [B, 3, S, S], clamped to [-1, 1], on the model's device.
        lengths: tokens that each image was given, int32 [B].
    """

    point: str
    images: Tensor
    lengths: Tensor


@torch.no_grad()
def own_lengths(model: DoveModel, pixels: Tensor, query: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """All tokens of a batch, and how many of them the model would keep.

    Args:
        model: in evaluation mode.
        pixels: [B, 3, S, S] in [-1, 1], on any device.
        query: ids int64 [Q] or embeddings [Q, hidden] that every image is given (Q-DOVE); None: "null", in
            a model with query weights.

    Returns:
        (Tensor, Tensor): tokens [B, K, D] and lengths int32 [B], at least 1.
    """
    pixels = pixels.to(model.device, model.dtype)
    rows = None if query is None else Query(query.to(pixels.device).expand(len(pixels), *query.shape))
    generated = model.generate(model.condition(pixels, rows))
    return generated.tokens, model.generator.lengths(generated.hidden)


@torch.no_grad()
def at_lengths(
    model: DoveModel, pixels: Tensor, counts: Sequence[int], query: Tensor | None = None
) -> Iterator[AtLength]:
    """Reconstructions of a batch at each token count, then at the model's own lengths.

    Args:
        model: in evaluation mode.
        pixels: as for `own_lengths`.
        counts: token counts; those above the model's number of tokens are left out.
        query: as for `own_lengths`.
    """
    tokens, own = own_lengths(model, pixels, query)
    fixed = [(str(n), torch.full_like(own, n)) for n in counts if n <= model.config.num_tokens]
    for point, lengths in [*fixed, (OWN, own)]:
        images = model.render(tokens, lengths).float().clamp(-1, 1).contiguous()
        yield AtLength(point, images, lengths)
