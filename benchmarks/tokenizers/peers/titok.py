"""TiTok ("An Image is Worth 32 Tokens for Reconstruction and Generation", arXiv 2406.07550).

A transformer reads 256 patches and a fixed number of latent tokens, which become codes of a 4096-entry
codebook of width 12. A second transformer turns the codes into probabilities over the 1024 codes of a MaskGIT
VQGAN, whose decoder draws the mean entry. Parameter names are those of the public files.

Simplified: inference only, so neither losses nor straight-through terms; only the three models of the paper,
in the layout of their files (see `encode`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint import fit, read
from .codebook import UnitCodebook
from .maskgit_vqgan import Decoder
from .transformer import Transformer, embedding

GRID = 16  # patches of 16 pixels on a side of 256
CODES, CODE_WIDTH = 4096, 12
PIXEL_CODES, PIXEL_CODE_WIDTH = 1024, 256


@dataclass(frozen=True)
class Shape:
    """Of both transformers, and the number of latent tokens."""

    width: int
    layers: int
    heads: int
    tokens: int


SHAPES = {"S-128": Shape(512, 8, 8, 128), "B-64": Shape(768, 12, 12, 64), "L-32": Shape(1024, 24, 16, 32)}


class Stage(nn.Module):
    """What encoder and decoder have in common: class token, 256 places, latent tokens, transformer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.class_embedding = embedding(1, shape.width)
        self.positional_embedding = embedding(GRID * GRID + 1, shape.width)
        self.latent_token_positional_embedding = embedding(shape.tokens, shape.width)
        self.ln_pre, self.ln_post = nn.LayerNorm(shape.width), nn.LayerNorm(shape.width)
        self.transformer = Transformer(shape.width, shape.layers, shape.heads)

    def run(self, grid: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Grid tokens [B, 256, width] and latent tokens [B, n, width], transformed."""
        grid = torch.cat([self.class_embedding.expand(len(grid), 1, -1), grid], dim=1)
        latents = latents + self.latent_token_positional_embedding
        x = torch.cat([grid + self.positional_embedding, latents], dim=1)
        x = self.transformer(self.ln_pre(x))
        return x[:, 1 : GRID * GRID + 1], x[:, GRID * GRID + 1 :]


class Encoder(Stage):
    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.patch_embed = nn.Conv2d(3, shape.width, GRID, stride=GRID)
        self.conv_out = nn.Conv2d(shape.width, CODE_WIDTH, 1)

    def forward(self, pixels: Tensor, latents: Tensor) -> Tensor:
        grid = self.patch_embed(pixels).flatten(2).transpose(1, 2)
        latents = self.ln_post(self.run(grid, latents.expand(len(grid), -1, -1))[1])
        # The public weights were trained with this reshape, which mixes tokens and channels, not a transpose.
        x = latents.reshape(len(grid), latents.shape[2], latents.shape[1], 1)
        return self.conv_out(x).flatten(2).transpose(1, 2)  # [B, n, CODE_WIDTH]


class TokenDecoder(Stage):
    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.decoder_embed = nn.Linear(CODE_WIDTH, shape.width)
        self.mask_token = embedding(1, 1, shape.width)
        inner, outer = nn.Conv2d(shape.width, 2 * shape.width, 1), nn.Conv2d(2 * shape.width, PIXEL_CODES, 1)
        self.ffn = nn.Sequential(inner, nn.Tanh(), outer)

    def forward(self, entries: Tensor) -> Tensor:
        grid = self.mask_token.expand(len(entries), GRID * GRID, -1)
        x = self.ln_post(self.run(grid, self.decoder_embed(entries))[0])
        return self.ffn(x.transpose(1, 2).unflatten(2, (GRID, GRID)).contiguous())


class TiTok(nn.Module):
    """One of the three sizes, with random weights.

    Args:
        name: "S-128", "B-64" or "L-32", or another shape (for quick tests).
        pixel_channels: the pixel decoder's channels at full resolution; 128 in all public files.
    """

    def __init__(self, name: str | Shape, *, pixel_channels: int = 128) -> None:
        super().__init__()
        if isinstance(name, str) and name not in SHAPES:
            raise ValueError(f"there is no TiTok {name!r}; choose from {', '.join(SHAPES)}")
        shape = SHAPES[name] if isinstance(name, str) else name
        self.latent_tokens = embedding(shape.tokens, shape.width)
        self.encoder, self.decoder = Encoder(shape), TokenDecoder(shape)
        self.quantize = UnitCodebook(CODES, CODE_WIDTH)
        self.pixel_quantize = nn.Module()
        self.pixel_quantize.embedding = nn.Embedding(PIXEL_CODES, PIXEL_CODE_WIDTH)
        self.pixel_decoder = Decoder(pixel_channels, PIXEL_CODE_WIDTH)

    @classmethod
    def from_checkpoint(cls, path: str | Path, *shape: Any, **more: Any) -> TiTok:
        """A model with the weights of a public file (safetensors or `.bin`), in eval mode.

        Args:
            path: the file.
            shape: as for the constructor: the name.
            more: likewise.

        Raises:
            CheckpointError: if the file cannot be read, or is not of this size.
        """
        with torch.device("meta"):
            model = cls(*shape, **more)
        fit(model, read(path), path)
        return model

    def encode(self, pixels: Tensor) -> Tensor:
        """Codes int64 [B, tokens] of pixels [B, 3, 256, 256] in [0, 1]."""
        return self.quantize.encode(self.encoder(pixels, self.latent_tokens))

    def detokenize(self, codes: Tensor) -> Tensor:
        """Probabilities [B, 1024, 16, 16] over the pixel decoder's codes, from codes [B, tokens]."""
        return self.decoder(self.quantize.decode(codes)).softmax(1)

    def pixel_decode(self, probabilities: Tensor) -> Tensor:
        """Pixels [B, 3, 256, 256] in [0, 1] of probabilities [B, 1024, 16, 16]."""
        weight = self.pixel_quantize.embedding.weight
        return self.pixel_decoder(torch.einsum("nchw,cd->ndhw", probabilities, weight)).clamp(0, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Pixels [B, 3, 256, 256] in [0, 1] of codes [B, tokens]."""
        return self.pixel_decode(self.detokenize(codes))
