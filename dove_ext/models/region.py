"""Tokens for a part of the picture: a coarse picture, then the places that matter, each with its address.

The frequencies of `FrequencyShortcut` are spread over the whole picture: whoever wants one object in it pays
for everything else. So with a relevance (a weight for each cell of the grid) only the first tokens are those
of the fixed order; each one behind them holds some components of a block of 2 x 2 cells, chosen by how much
of the missing, weighted by relevance, it brings back. For a whole picture the fixed order is the better one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dove_ext.devices import send
from dove_ext.metrics.pixel import psnr_of_mse
from dove_ext.models.shortcut import BEST_QUALITY, FrequencyShortcut

# Both by PSNR inside the boxes of 40 photographs at 24 to 64 tokens, by a script that is not kept.
FIRST = 8  # tokens of the fixed order in front; with 16 as much needs some 5 tokens more
SIDE = 2  # cells along a block; with 1 and 4 it is 1 to 2 dB worse
WHOLE, COARSE = 0, -1  # addresses of tokens of the fixed order: without a relevance, and in front of blocks
_ELSEWHERE = 1e-6  # of a cell without relevance: when all others are complete, it follows


class RegionCode(nn.Module):
    """Blocks of latents as tokens, and back.

    A block has an address from 1 on: (row, column, band of components), the band changing fastest. `spread`
    divides each component so that what the coarse picture leaves has about unit variance.

    Args:
        grid: latents along a side, a multiple of `SIDE`.
        latent_channels: C.
        num_tokens: K.
        width: values of a token's code, a multiple of `SIDE`^2.
        pixels: values of a picture, all channels.
    """

    def __init__(self, grid: int, latent_channels: int, num_tokens: int, width: int, pixels: int) -> None:
        super().__init__()
        self.rows, self.width, self.channels = grid // SIDE, width, latent_channels
        self.components = width // SIDE**2  # of a cell in one token
        self.bands = -(-latent_channels // self.components)
        self.addresses = self.rows**2 * self.bands
        self.num_tokens, self.first = num_tokens, min(FIRST, num_tokens // 2)
        self.pixels = pixels
        self.spread: Tensor
        self.register_buffer("spread", torch.ones(latent_channels))

    @staticmethod
    def fits(grid: int, width: int) -> bool:
        """Whether a grid can be cut into blocks and a token into cells."""
        return grid % SIDE == 0 and width % SIDE**2 == 0

    def blocks(self, latents: Tensor) -> Tensor:
        """Latents [B, P, C] cut into blocks: [B, addresses, width]."""
        padded = F.pad(latents, (0, self.bands * self.components - self.channels))
        shape = (self.rows, SIDE, self.rows, SIDE, self.bands, self.components)
        return padded.unflatten(2, shape[4:]).unflatten(1, shape[:4]).permute(0, 1, 3, 5, 2, 4, 6).reshape(
            -1, self.addresses, self.width
        )  # fmt: skip

    def whole(self, blocks: Tensor) -> Tensor:
        """What `blocks` cut, put together: [B, addresses, width] to [B, P, C]."""
        parts = blocks.unflatten(2, (SIDE, SIDE, -1)).unflatten(1, (self.rows, self.rows, self.bands))
        return parts.permute(0, 1, 4, 2, 5, 3, 6).flatten(5).flatten(1, 4)[..., : self.channels]

    @torch.no_grad()
    def fit(self, shortcut: FrequencyShortcut, latents: Tensor) -> Tensor:
        """Sum over images of the squares that the coarse picture leaves in latents [B, P, C]: [C]."""
        return (latents - self._coarse(shortcut, shortcut.code(latents))[:, -1]).square().mean(1).sum(0)

    def _coarse(self, shortcut: FrequencyShortcut, code: Tensor) -> Tensor:
        """Latents of the first 1, 2, ... `first` tokens of the code [B, K, width]: [B, first, P, C]."""
        first = code[:, : self.first].flatten(0, 1)
        steps = code.new_zeros(first.shape[0], self.num_tokens, self.width)
        at = torch.arange(self.first, device=code.device).repeat(code.shape[0])
        steps[torch.arange(len(steps), device=code.device), at] = first
        return shortcut.latents(steps).unflatten(0, (-1, self.first)).cumsum(1)

    @torch.no_grad()
    def select(
        self,
        shortcut: FrequencyShortcut,
        latents: Tensor,
        fixed: Tensor,
        relevance: Tensor,
        worth: Tensor,
        lost: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The tokens of what matters, most important first.

        Args:
            shortcut: holds the coarse picture.
            latents: [B, P, C].
            fixed: [B, K, width], the shortcut's code of them.
            relevance: float32 [B, P], not negative, somewhere above 0.
            worth: float32 [C], `VQGAN.worth`.
            lost: float32 [B, P], as for `FrequencyShortcut.quality`.

        Returns:
            (Tensor, Tensor, Tensor): code [B, K, width] in the latents' dtype; quality float32 [B, K], PSNR
            of the linear picture of the first 1..K tokens with the squared error of each cell weighted by its
            relevance, in dB and as exact as `FrequencyShortcut.quality`; addresses int64 [B, K].

        Raises:
            ValueError: if the latents' dtype cannot tell all addresses apart.
        """
        if self.addresses > 2 / torch.finfo(latents.dtype).eps:
            raise ValueError(
                f"{latents.dtype} cannot tell the {self.addresses} blocks of this model's grid apart; "
                "use the model in float32"
            )
        count, slots = latents.shape[0], self.num_tokens
        coarse = self._coarse(shortcut, fixed)
        left = latents - coarse[:, -1]
        squares = left.float().square() * worth
        cells = relevance[..., None] + _ELSEWHERE * relevance.amax(1)[:, None, None]
        claim = self.blocks(squares * cells).sum(-1)
        order = claim.argsort(dim=1, descending=True, stable=True)
        sent = order[:, : slots - self.first]
        code = latents.new_zeros(count, slots, self.width)
        code[:, : self.first] = fixed[:, : self.first]
        end = self.first + sent.shape[1]
        values = self.blocks(left / self.spread)
        code[:, self.first : end] = values.gather(1, sent[..., None].expand(-1, -1, self.width))
        address = torch.full((count, slots), COARSE, device=latents.device)
        address[:, self.first : end] = sent + 1

        # Weighted energies: what the coarse tokens leave, then what stands behind each block, summed from
        # behind so that small numbers meet small ones.
        total = relevance.sum(1, keepdim=True) * (self.pixels / latents.shape[1])
        gains = self.blocks(squares * relevance[..., None]).sum(-1).gather(1, order)
        behind = F.pad(gains.flip(1).cumsum(1).flip(1), (0, 1))
        early = (((latents[:, None] - coarse).float().square() * worth).sum(-1) * relevance[:, None]).sum(-1)
        error = torch.cat([early[:, :-1], behind[:, : sent.shape[1] + 1]], 1) / total
        error = F.pad(error, (0, slots - error.shape[1]), mode="replicate")
        error = error + (lost * relevance).sum(1, keepdim=True) / relevance.sum(1, keepdim=True)
        return code, psnr_of_mse(error / 4).clamp(0.0, BEST_QUALITY), address

    def latents(self, code: Tensor, address: Tensor) -> Tensor:
        """Latents [B, P, C] of the blocks among tokens: code [B, K, width], addresses int64 [B, K].

        Addresses that are no block's are passed over, whatever the code.
        """
        at = address.where((address >= 1) & (address <= self.addresses), torch.zeros_like(address))
        blocks = code.new_zeros(code.shape[0], self.addresses + 1, self.width)
        blocks = blocks.scatter_add(1, at[..., None].expand_as(code), code)
        return self.whole(blocks[:, 1:]) * self.spread


def cell_weights(relevance: Any, count: int, grid: int, device: torch.device) -> Tensor:
    """A user's relevance as weights of the grid's cells: float32 [count, grid^2], at most 1.

    Args:
        relevance: array [count, h, w], or [h, w] for all images, over the square that the model sees.
        count: images.
        grid: cells along a side.
        device: of the result.

    Raises:
        ValueError: if the shape fits no images, or a map is negative, not finite, or zero everywhere.
    """
    try:
        maps = relevance if isinstance(relevance, Tensor) else torch.as_tensor(np.array(relevance))
    except (TypeError, ValueError) as error:  # of texts, of rows of unequal lengths
        raise ValueError(f"relevance must be an array of numbers ({error})") from error
    maps = send(maps, device).float()
    if maps.dim() == 2:
        maps = maps.expand(count, -1, -1)
    if maps.dim() != 3 or maps.shape[0] != count or not maps.numel():
        raise ValueError(
            f"relevance must be [h, w], or [{count}, h, w] for {count} images, got {list(maps.shape)}"
        )
    wrong = (~(maps.isfinite() & (maps >= 0))).flatten(1).any(1)
    if wrong.any():
        raise ValueError(
            f"the relevance of image {int(wrong.nonzero()[0])} has a negative value or one that is not finite"
        )
    largest = maps.amax((1, 2), keepdim=True)  # whose sum over a cell might be more than float32 holds
    maps = maps / largest.where(largest > 0, 1)
    cells = F.interpolate(maps[:, None], size=(grid, grid), mode="area").flatten(1)
    most = cells.amax(1, keepdim=True)
    if not most.all():
        raise ValueError(
            f"the relevance of image {int((most == 0).nonzero()[0, 0])} is zero everywhere; "
            "leave it out for the whole picture"
        )
    return cells / most


def pixel_weights(cells: Tensor, side: int) -> Tensor:
    """Weights [B, grid^2] of cells of `side` pixels as weights of pixels: [B, 1, S, S]."""
    square = cells.view(len(cells), 1, math.isqrt(cells.shape[1]), -1)
    return square.repeat_interleave(side, 2).repeat_interleave(side, 3)
