"""A linear path from the grid to the tokens and back, so that training starts from a code that works.

Tokens are filled with the coefficients of the grid's 2-D DCT, most important first: a prefix of the tokens
is then a coarse picture, and more tokens add detail. The stacks learn what to add to it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def dct_basis(grid: int) -> Tensor:
    """The orthonormal 2-D DCT-II of a grid: float32 [grid^2, grid^2], one row a frequency (row by row)."""
    position = torch.arange(grid, dtype=torch.float64)
    one = torch.cos(torch.pi / grid * (position + 0.5) * position[:, None]) * (2 / grid) ** 0.5
    one[0] /= 2**0.5
    return torch.kron(one, one).float()


class FrequencyShortcut(nn.Module):
    """Tokens from latents and latents from tokens, both linear and inverse to one another.

    A coefficient is a pair (frequency, latent channel). `order` lists the pairs that the tokens hold, slot by
    slot, and `scale` divides each so that it has unit variance. A new module orders them by rising frequency;
    `arrange` orders them by what they are worth on data; `missing[n]`, n = 0..K, is then the root mean square
    error of the first n tokens on that data, relative to that of no tokens.
    """

    def __init__(self, grid: int, latent_channels: int, num_tokens: int, token_width: int) -> None:
        super().__init__()
        self.num_tokens, self.token_width = num_tokens, token_width
        self.coefficients = grid * grid * latent_channels
        self.kept = min(self.coefficients, num_tokens * token_width)
        self.basis = nn.Parameter(dct_basis(grid))
        rows, columns = torch.arange(grid).repeat_interleave(grid), torch.arange(grid).repeat(grid)
        by_frequency = (rows**2 + columns**2).argsort(stable=True)
        pairs = by_frequency[:, None] * latent_channels + torch.arange(latent_channels)
        self.order: Tensor
        self.scale: Tensor
        self.register_buffer("order", pairs.flatten()[: self.kept].int())
        self.register_buffer("scale", torch.ones(self.kept))
        self.missing: Tensor
        self.register_buffer("missing", torch.ones(num_tokens + 1))

    def transform(self, latents: Tensor) -> Tensor:
        """All coefficients of latents [B, P, C]: [B, P * C], frequency by frequency."""
        return (self.basis @ latents).flatten(1)

    @torch.no_grad()
    def arrange(self, variance: Tensor, worth: Tensor) -> None:
        """Order the coefficients by `variance * worth` and scale them to unit variance.

        Args:
            variance: [P * C], mean square of each coefficient on training images.
            worth: [P * C], what a unit of squared error in a coefficient costs in the image.
        """
        error = (variance * worth).double()
        order = error.argsort(descending=True, stable=True)[: self.kept]
        self.order.copy_(order)
        self.scale.copy_(variance[order].clamp_min(1e-12).sqrt())
        saved = F.pad(error[order], (0, self.num_tokens * self.token_width - self.kept))
        saved = saved.unflatten(0, (self.num_tokens, self.token_width)).sum(1).cumsum(0)
        left = 1 - F.pad(saved, (1, 0)) / error.sum()
        # Rounding to half precision stays within reach of the branches: a thousandth.
        self.missing.copy_(left.clamp_min(1e-6).sqrt())

    def tokens(self, latents: Tensor) -> Tensor:
        """Latents [B, P, C] to tokens [B, K, D]."""
        held = self.transform(latents).index_select(1, self.order) / self.scale
        tokens = held.new_zeros(held.shape[0], self.num_tokens * self.token_width)
        tokens[:, : self.kept] = held
        return tokens.unflatten(1, (self.num_tokens, self.token_width))

    @torch.no_grad()  # a unit of measurement, not something to be trained
    def expected_error(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """The root mean square error to expect of each image, relative to the average image of no tokens.

        Coefficients have unit variance on average over images; an image whose last kept tokens are smaller
        than that has less in the missing ones, too. The learned residual branches are multiplied by it, so
        their corrections are large for a coarse picture and small for a fine one.

        Args:
            tokens: [B, K, D], zero behind each image's length.
            lengths: int32 [B], 1..K.

        Returns:
            Tensor: float32 [B].
        """
        kept = lengths[:, None]
        position = torch.arange(tokens.shape[1], device=tokens.device)
        last = (position < kept) & (position >= torch.minimum(kept - 1, kept * 7 // 8))
        energy = tokens.float().square().mean(2)
        size = ((energy * last).sum(1) / last.sum(1)).sqrt()
        return self.missing[lengths.long()].float() * size

    def latents(self, tokens: Tensor) -> Tensor:
        """Tokens [B, K, D] (zeros behind the kept ones) to latents [B, P, C]."""
        held = tokens.flatten(1)[:, : self.kept] * self.scale
        coefficients = held.new_zeros(held.shape[0], self.coefficients).index_copy(1, self.order.long(), held)
        return self.basis.T @ coefficients.unflatten(1, (self.basis.shape[0], -1))
