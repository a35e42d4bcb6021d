"""Measures that need nothing but the pixels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def psnr(reconstruction: Tensor, pixels: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image.

    Args:
        reconstruction: [B, 3, H, W], clamped to [-1, 1] first.
        pixels: [B, 3, H, W] in [-1, 1].

    Returns:
        Tensor: [B], in dB, infinite where both are equal; float64 if an input is, otherwise float32.
    """
    dtype = torch.promote_types(torch.promote_types(reconstruction.dtype, pixels.dtype), torch.float32)
    error = (reconstruction.to(dtype).clamp(-1, 1) - pixels.to(dtype)).div(2).square().flatten(1).mean(1)
    return -10 * error.log10()


def laplacian_variance(pixels: Tensor) -> Tensor:
    """Variance of the 4-neighbour Laplacian of the luminance in 0..255 (the paper's image complexity, 3.2).

    Args:
        pixels: [B, 3, H, W] in [-1, 1], H and W at least 3; borders have no Laplacian.

    Returns:
        Tensor: float32 [B].
    """
    red, green, blue = ((pixels.float() + 1) * 127.5).unbind(1)
    grey = (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], device=grey.device)[None, None]
    return F.conv2d(grey, kernel).flatten(1).var(1, unbiased=False)
