"""The transformer that ALIT and TiTok share: bidirectional, norm first, and an MLP four times as wide."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def embedding(*shape: int) -> nn.Parameter:
    return nn.Parameter(shape[-1] ** -0.5 * torch.randn(shape))


class Block(nn.Module):
    """Attention and MLP on x [T, B, width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads)
        self.mlp = nn.Sequential()
        self.mlp.c_fc, self.mlp.gelu = nn.Linear(width, 4 * width), nn.GELU()
        self.mlp.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.ModuleList):
    """Blocks on x [B, T, width]; inside, the time axis comes first, as in the public code."""

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__(Block(width, heads) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        for block in self:
            x = block(x)
        return x.transpose(0, 1)
