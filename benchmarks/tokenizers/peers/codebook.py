"""Nearest codebook entries, by the distance all the peers compute: |z|^2 + |e|^2 - 2 z e."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def nearest(latents: Tensor, entries: Tensor) -> Tensor:
    """Index of the entry [N, D] nearest to each latent [..., D]: int64 [...]."""
    flat = latents.reshape(-1, latents.shape[-1])
    distance = flat.pow(2).sum(1, keepdim=True) + entries.pow(2).sum(1) - 2 * flat @ entries.T
    return distance.argmin(1).view(latents.shape[:-1])


class UnitCodebook(nn.Module):
    """Entries compared by direction, as ALIT and TiTok quantise their tokens; always in float32."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, width)

    def entries(self) -> Tensor:
        """All entries at length 1: float32 [size, width]."""
        return F.normalize(self.embedding.weight.float(), dim=-1)

    def encode(self, latents: Tensor) -> Tensor:
        """Codes int64 [B, n] of latents [B, n, width]."""
        return nearest(F.normalize(latents.float(), dim=-1), self.entries())

    def decode(self, codes: Tensor) -> Tensor:
        """Entries [B, n, width] of codes [B, n], in the dtype of the weights."""
        weight = self.embedding.weight
        return F.normalize(F.embedding(codes, weight).float(), dim=-1).to(weight.dtype)
