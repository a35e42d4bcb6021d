"""VQGAN-256, the encoder of the public f16 models, as it is usually run: eager, channels-first, float32.

Plain torch modules in the shape of A.1 (128 channels, multipliers 1, 1, 2, 2, 4, two residual blocks a level,
attention at 16x16), then the nearest of the codebook's entries for each of the 256 positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class Residual(nn.Module):
    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(channels_in), nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2, self.conv2 = norm(channels_out), nn.Conv2d(channels_out, channels_out, 3, padding=1)
        same = channels_in == channels_out
        self.skip = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class Attention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (f(h).flatten(2) for f in (self.q, self.k, self.v))  # [B, C, HW]
        weight = torch.softmax(q.transpose(1, 2) @ k * q.shape[1] ** -0.5, dim=-1)
        return x + self.out((v @ weight.transpose(1, 2)).view_as(x))


class Down(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class VQGAN(nn.Module):
    """The encoder and the codebook, with random weights."""

    def __init__(self, codebook_size: int = 8192) -> None:
        super().__init__()
        widths = [128, 128, 256, 256, 512]
        layers: list[nn.Module] = [nn.Conv2d(3, 128, 3, padding=1)]
        before = 128
        for i, width in enumerate(widths):
            for _ in range(2):
                layers.append(Residual(before, width))
                layers += [Attention(width)] if i == 4 else []
                before = width
            layers += [Down(width)] if i < 4 else []
        layers += [Residual(512, 512), Attention(512), Residual(512, 512)]
        layers += [norm(512), nn.SiLU(), nn.Conv2d(512, 256, 3, padding=1), nn.Conv2d(256, 256, 1)]
        self.encoder = nn.Sequential(*layers)
        self.codebook = nn.Embedding(codebook_size, 256)

    def encode(self, pixels: Tensor) -> Tensor:
        """Code indices [B, 256] of images [B, 3, 256, 256] in [-1, 1]."""
        latents = self.encoder(pixels).flatten(2).transpose(1, 2)
        codes = self.codebook.weight
        return (codes.pow(2).sum(1) - 2 * latents @ codes.T).argmin(-1)
