"""A linear path from the grid to the tokens and back: a code whose quality is known without any learning.

Tokens are filled with the coefficients of the grid's 2-D DCT, most important first: a prefix of the tokens
is then a coarse picture, and more tokens add detail. What a prefix leaves out is what the coefficients behind
it hold, so the error of every prefix of any picture is a number that the encoder has at hand; each token
carries that of the prefix it ends. The stacks learn what to add.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dove_ext.metrics.pixel import psnr_of_mse
from dove_ext.models.pretrained import computed

BEST_QUALITY = 80.0  # dB; beyond it float32 sums say little, and no picture of 8 bits
CONCENTRATION = 16.0  # dB; how far the worst patch's error may be above the mean one
_MIDDLE, _SPREAD = 30.0, 10.0  # dB; a token holds its quality standardised like its coefficients


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
    `arrange` orders them by what they are worth on data. A token is `width` coefficients, its code, and
    behind them the quality of the picture up to it and an address (`models.region`).

    Args:
        grid: latents along a side.
        latent_channels: C.
        num_tokens: K.
        width: coefficients of a token.
        pixels: values of a picture, all channels.
    """

    def __init__(self, grid: int, latent_channels: int, num_tokens: int, width: int, pixels: int) -> None:
        super().__init__()
        self.num_tokens, self.width, self.latent_channels = num_tokens, width, latent_channels
        self.pixels = pixels
        self.coefficients = grid * grid * latent_channels
        self.kept = min(self.coefficients, num_tokens * width)
        self.basis = nn.Parameter(computed(lambda: dct_basis(grid), grid**2, grid**2))
        self.order: Tensor
        self.scale: Tensor
        order = computed(lambda: self._by_frequency(grid), self.kept, dtype=torch.int32)
        self.register_buffer("order", order)
        self.register_buffer("scale", torch.ones(self.kept))

    def _by_frequency(self, grid: int) -> Tensor:
        rows, columns = torch.arange(grid).repeat_interleave(grid), torch.arange(grid).repeat(grid)
        by_frequency = (rows**2 + columns**2).argsort(stable=True)
        pairs = by_frequency[:, None] * self.latent_channels + torch.arange(self.latent_channels)
        return pairs.flatten()[: self.kept].int()

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

    def code(self, latents: Tensor) -> Tensor:
        """Latents [B, P, C] to the coefficients of all tokens [B, K, width]."""
        held = self.transform(latents).index_select(1, self.order) / self.scale
        code = held.new_zeros(held.shape[0], self.num_tokens * self.width)
        code[:, : self.kept] = held
        return code.unflatten(1, (self.num_tokens, self.width))

    def latents(self, tokens: Tensor) -> Tensor:
        """Tokens [B, K, D] (zeros behind the kept ones), of which the code is read, to latents [B, P, C]."""
        held = tokens[..., : self.width].flatten(1)[:, : self.kept] * self.scale
        coefficients = held.new_zeros(held.shape[0], self.coefficients).index_copy(1, self.order.long(), held)
        return self.basis.T @ coefficients.unflatten(1, (self.basis.shape[0], -1))

    # --- What is left ---------------------------------------------------------------------------------

    def _energies(self, worth: Tensor) -> Tensor:
        """Squared pixel error that leaving out a coefficient of 1 costs, of all that tokens hold: [kept]."""
        channel = self.order.long() % self.latent_channels
        return self.scale.float().square() * worth.index_select(0, channel)

    @torch.no_grad()  # a unit of measurement, not something to be trained
    def quality(self, code: Tensor, worth: Tensor, lost: Tensor) -> Tensor:
        """PSNR of the linear code's picture of the first 1..K tokens: float32 [B, K], at most `BEST_QUALITY`.

        Exact, for any picture, if the patch shortcut's components are orthogonal, as the closed form makes
        them; but for what clamping to the range of pixels saves.

        Args:
            code: [B, K, width].
            worth: float32 [C], `VQGAN.worth`.
            lost: float32 [B, P], the mean squared error that the latents leave in each patch, in pixels of
                [-1, 1].
        """
        energies = F.pad(self._energies(worth), (0, self.num_tokens * self.width - self.kept))
        each = (code.float().square() * energies.unflatten(0, (self.num_tokens, self.width))).sum(-1)
        # Summed from behind, so that small numbers meet small ones: what stands behind each token.
        behind = F.pad(each[:, 1:], (0, 1)).flip(1).cumsum(1).flip(1) / self.pixels
        return psnr_of_mse((behind + lost.mean(1, keepdim=True)) / 4).clamp(0.0, BEST_QUALITY)

    @torch.no_grad()
    def margin(self, latents: Tensor, worth: Tensor, lost: Tensor, relevance: Tensor | None = None) -> Tensor:
        """By how much a picture must be better than others whose content is in one place: float32 [B], in dB.

        A white dot on black is 37 dB away from plain black: PSNR over the whole picture says that nothing is
        missing. Let the patch that differs most from the picture's mean latent hold s of the sum of these
        differences. If what a prefix leaves out is spread alike, the error there is s P times the mean one;
        it may be `CONCENTRATION` above it, and the margin is what is beyond. No photograph that we have seen
        has one.

        Args:
            latents: [B, P, C].
            worth: as for `quality`.
            lost: likewise.
            relevance: float32 [B, P], if not all patches matter alike.
        """
        z = latents.float()
        each = ((z - z.mean(1, keepdim=True)).square() * worth).sum(-1) * z.shape[1] / self.pixels + lost
        weight = torch.ones_like(each) if relevance is None else relevance
        mean = (each * weight).sum(1) / weight.sum(1)
        excess = (each * weight).amax(1) / mean.clamp_min(1e-12)
        return (10 * excess.clamp_min(1e-12).log10() - CONCENTRATION).clamp_min(0)

    def with_quality(self, code: Tensor, quality: Tensor, address: Tensor | None = None) -> Tensor:
        """Tokens [B, K, width + 1]: the code, and each prefix's quality, standardised; then any address."""
        columns = [(quality - _MIDDLE) / _SPREAD, *([] if address is None else [address])]
        return torch.cat([code, *(column[..., None].to(code.dtype) for column in columns)], dim=-1)

    @torch.no_grad()
    def quality_of(self, tokens: Tensor) -> Tensor:
        """`quality` as tokens [..., D] hold it, to rounding in their dtype: float32 [...]."""
        return tokens[..., self.width].float() * _SPREAD + _MIDDLE

    @torch.no_grad()
    def address_of(self, tokens: Tensor) -> Tensor:
        """Addresses (`models.region`) as tokens [..., D] hold them: int64 [...]; of what is none, 0."""
        return tokens[..., self.width + 1].float().nan_to_num(0, 0, 0).clamp(-1, 2**24).round().long()

    @torch.no_grad()
    def error(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Root mean square pixel error that the kept tokens leave, as the last of them says: float32 [B].

        Args:
            tokens: [B, K, D].
            lengths: int32 [B], 1..K.
        """
        last = (lengths.long() - 1)[:, None]
        quality = self.quality_of(tokens).gather(1, last)[:, 0]
        return 2 * 10 ** (-quality.clamp(0.0, BEST_QUALITY) / 20)

    @torch.no_grad()
    def typical(self, worth: Tensor) -> Tensor:
        """`error` without any token, over the images that the code was fitted to: float32, no dimensions."""
        return (self._energies(worth).sum() / self.pixels).sqrt()
