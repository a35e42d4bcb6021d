"""The VQGAN of MaskGIT (arXiv 2202.04200) and MAGE: ALIT's base tokenizer, and TiTok's pixel decoder.

Against the VQGAN of taming-transformers: no attention, no convolutions around the codebook, residual
convolutions without bias, average pooling on the way down, two residual blocks a level on the way up too, and
1024 codes. Where a block changes its width, the shortcut is taken from the second convolution's output; that
is how the public weights were trained. Parameter names are those of TiTok's files; `from_mage` translates
ALIT's.

Simplified: TiTok's code pads with a call of its own before each convolution, MAGE's writes SiLU as a product;
here both are inside the PyTorch operators, which is never slower.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from .codebook import nearest

MULTIPLIERS = (1, 1, 2, 2, 4)


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class Residual(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(before), nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.norm2, self.conv2 = norm(after), nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.nin_shortcut = None if before == after else nn.Conv2d(after, after, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(h))


class Level(nn.Module):
    """Two residual blocks at one resolution, and the way up from it if there is one."""

    def __init__(self, before: int, after: int, *, upsample: bool = False) -> None:
        super().__init__()
        self.block = nn.Sequential(Residual(before, after), Residual(after, after))
        self.upsample_conv = nn.Conv2d(after, after, 3, padding=1) if upsample else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)
        if self.upsample_conv is not None:
            x = self.upsample_conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return x


class Encoder(nn.Module):
    """Pixels [B, 3, 256, 256] in [0, 1] to latents [B, latent_width, 16, 16]."""

    def __init__(self, channels: int, latent_width: int) -> None:
        super().__init__()
        widths = [channels * m for m in MULTIPLIERS]
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.down = nn.ModuleList(Level(a, b) for a, b in zip([channels, *widths], widths, strict=False))
        self.mid = nn.Sequential(*(Residual(widths[-1], widths[-1]) for _ in range(2)))
        self.norm_out, self.conv_out = norm(widths[-1]), nn.Conv2d(widths[-1], latent_width, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv_in(pixels)
        for i, level in enumerate(self.down):
            x = level(x if i == 0 else F.avg_pool2d(x, 2))
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Latents [B, latent_width, 16, 16] to pixels [B, 3, 256, 256], about [0, 1] but not clamped."""

    def __init__(self, channels: int, latent_width: int) -> None:
        super().__init__()
        widths = [channels * m for m in MULTIPLIERS]
        pairs = zip([*widths[1:], widths[-1]], widths, strict=True)
        self.conv_in = nn.Conv2d(latent_width, widths[-1], 3, padding=1)
        self.mid = nn.Sequential(*(Residual(widths[-1], widths[-1]) for _ in range(2)))
        self.up = nn.ModuleList(Level(a, b, upsample=i > 0) for i, (a, b) in enumerate(pairs))
        self.norm_out, self.conv_out = norm(channels), nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class MaskGitVQGAN(nn.Module):
    """Encoder, decoder and codebook, with random weights."""

    def __init__(self, channels: int = 128, latent_width: int = 256, codebook_size: int = 1024) -> None:
        super().__init__()
        self.encoder = Encoder(channels, latent_width)
        self.decoder = Decoder(channels, latent_width)
        self.codebook = nn.Embedding(codebook_size, latent_width)

    def codes(self, latents: Tensor) -> Tensor:
        """Code indices [B, 256] of the encoder's latents [B, latent_width, 16, 16]."""
        return nearest(latents.flatten(2).transpose(1, 2), self.codebook.weight)

    def decode(self, probabilities: Tensor) -> Tensor:
        """Pixels, not clamped, of the mean entries under probabilities [B, 256, codebook_size]."""
        return self.decoder((probabilities @ self.codebook.weight).transpose(1, 2).unflatten(2, (16, 16)))


def from_mage(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file in MAGE's layout (which ALIT's checkpoints contain) under the names used here."""
    renamed = {"mid.block_1.": "mid.0.", "mid.block_2.": "mid.1.", "upsample.conv.": "upsample_conv."}
    renamed["quantize.embedding."] = "codebook."
    tensors = {}
    for name, tensor in weights.items():
        for theirs, ours in renamed.items():
            name = name.replace(theirs, ours)
        tensors[name] = tensor
    return tensors
