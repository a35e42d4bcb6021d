"""VQGAN-256 ("Taming Transformers for High-Resolution Image Synthesis", arXiv 2012.09841): encode and decode.

The public f16 models as they are usually run: eager, channels-first, float32. 128 channels, multipliers 1, 1,
2, 2, 4, two residual blocks a level on the way down and three on the way up, attention at 16x16, then the
nearest of the codebook's entries for each of the 256 positions. Parameter names are the public files'.

Simplified: inference only, without losses or straight-through terms; SiLU is PyTorch's operator, where the
public code writes a product.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checkpoint import fit, read
from .codebook import nearest

MULTIPLIERS = (1, 1, 2, 2, 4)
LATENT_WIDTH = 256


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class Residual(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(before), nn.Conv2d(before, after, 3, padding=1)
        self.norm2, self.conv2 = norm(after), nn.Conv2d(after, after, 3, padding=1)
        self.nin_shortcut = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class Attention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (f(h).flatten(2) for f in (self.q, self.k, self.v))  # [B, C, HW]
        weight = torch.softmax(q.transpose(1, 2) @ k * q.shape[1] ** -0.5, dim=-1)
        return x + self.proj_out((v @ weight.transpose(1, 2)).view_as(x))


class Middle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1, self.attn_1 = Residual(channels, channels), Attention(channels)
        self.block_2 = Residual(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Resample(nn.Module):
    """The convolution between two levels: from the doubled picture, or at every second place."""

    def __init__(self, channels: int, *, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(channels, channels, 3, **({"padding": 1} if up else {"stride": 2}))

    def forward(self, x: Tensor) -> Tensor:
        if self.up:
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Level(nn.Module):
    """The residual blocks of one resolution, each with attention at the lowest, and the way to the next."""

    def __init__(self, widths: list[int], *, attend: bool, down: bool = False, up: bool = False) -> None:
        super().__init__()
        self.block = nn.ModuleList(Residual(a, b) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(Attention(b) for b in widths[1:] if attend)
        if down:
            self.downsample = Resample(widths[-1], up=False)
        if up:
            self.upsample = Resample(widths[-1], up=True)

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            x = self.attn[i](x) if len(self.attn) else x
        x = self.downsample(x) if hasattr(self, "downsample") else x
        return self.upsample(x) if hasattr(self, "upsample") else x


class Encoder(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = [channels * m for m in MULTIPLIERS]
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1)
        self.down = nn.Sequential(
            *(
                Level([before, after, after], attend=i == 4, down=i < 4)
                for i, (before, after) in enumerate(zip([channels, *widths], widths, strict=False))
            )
        )
        self.mid = Middle(widths[-1])
        self.norm_out, self.conv_out = norm(widths[-1]), nn.Conv2d(widths[-1], LATENT_WIDTH, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.mid(self.down(self.conv_in(pixels)))
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = [channels * m for m in MULTIPLIERS]
        self.conv_in = nn.Conv2d(LATENT_WIDTH, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(
            Level([before, after, after, after], attend=i == 4, up=i > 0)
            for i, (before, after) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True))
        )
        self.norm_out, self.conv_out = norm(channels), nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class VQGAN(nn.Module):
    """Encoder, codebook and decoder, with random weights.

    Args:
        codebook_size: entries of width 256.
        channels: at full resolution; 128 in the public models.
    """

    def __init__(self, codebook_size: int = 8192, *, channels: int = 128) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(channels), Decoder(channels)
        self.quant_conv = nn.Conv2d(LATENT_WIDTH, LATENT_WIDTH, 1)
        self.post_quant_conv = nn.Conv2d(LATENT_WIDTH, LATENT_WIDTH, 1)
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(codebook_size, LATENT_WIDTH)

    @classmethod
    def from_checkpoint(cls, path: str | Path, *shape: Any, **more: Any) -> VQGAN:
        """A model with the weights of a public taming-transformers file, in eval mode.

        Args:
            path: the file.
            shape: as for the constructor: the codebook's size.
            more: likewise.

        Raises:
            CheckpointError: if the file cannot be read, or is not of this size.
        """
        with torch.device("meta"):
            model = cls(*shape, **more)
        fit(model, {n: t for n, t in read(path).items() if not n.startswith("loss.")}, path)
        return model

    def encode(self, pixels: Tensor) -> Tensor:
        """Code indices int64 [B, 256] of pixels [B, 3, 256, 256] in [-1, 1]."""
        latents = self.quant_conv(self.encoder(pixels)).flatten(2).transpose(1, 2)
        return nearest(latents, self.quantize.embedding.weight)

    def decode(self, indices: Tensor) -> Tensor:
        """Pixels [B, 3, 256, 256] in [-1, 1] of code indices [B, 256]."""
        side = int(indices.shape[1] ** 0.5)
        grid = self.quantize.embedding(indices).transpose(1, 2).unflatten(2, (side, side)).contiguous()
        return self.decoder(self.post_quant_conv(grid)).clamp(-1, 1)
