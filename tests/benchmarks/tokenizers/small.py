"""Small peer systems, and pictures for them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.tokenizers.peers.alit import ALIT
from benchmarks.tokenizers.peers.maskgit_vqgan import MaskGitVQGAN
from benchmarks.tokenizers.peers.titok import Shape


def pictures(batch: int = 1) -> Tensor:
    """Smooth random pixels [batch, 3, 256, 256] in [0, 1]."""
    return F.interpolate(torch.rand(batch, 3, 8, 8), size=(256, 256), mode="bilinear")


def small_base() -> MaskGitVQGAN:
    return MaskGitVQGAN(channels=32, latent_width=32, codebook_size=16)


def small_alit(halting: float | None = None) -> ALIT:
    return ALIT(64, 1, 2, base=small_base(), halting=halting).eval()


SMALL_TITOK = Shape(width=64, layers=1, heads=2, tokens=24)
