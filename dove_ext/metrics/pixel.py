"""Measures that need nothing but the pixels."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

PSNR_CEILING = 100.0  # dB; what equal images count as where there must be a mean


def mse(reconstruction: Tensor, pixels: Tensor, *, black: float, weight: Tensor | None = None) -> Tensor:
    """Mean squared error of each image, on the scale 0..1.

    Args:
        reconstruction: [B, 3, H, W], clamped to `black`..1 first.
        pixels: [B, 3, H, W] in `black`..1.
        black: the darkest value: -1 of images as a model takes them, 0 of images as a user has them. What is
            told wrongly costs 6 dB, so there is no default.
        weight: [B, 1, H, W], how much each place counts, somewhere above 0; None: all alike.

    Returns:
        Tensor: [B]; float64 if an input is, otherwise float32.

    Raises:
        TypeError: if an input is of an integer dtype, whose white is not 1.
    """
    for images in (reconstruction, pixels):
        if not images.is_floating_point():
            raise TypeError(f"images must be floats of {black:g} to 1, got {images.dtype}; divide by 255")
    dtype = torch.promote_types(torch.promote_types(reconstruction.dtype, pixels.dtype), torch.float32)
    difference = reconstruction.to(dtype).clamp(black, 1) - pixels.to(dtype)
    squares = difference.div(1 - black).square()
    if weight is None:
        return squares.flatten(1).mean(1)
    return (squares.mean(1, keepdim=True) * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)


def psnr(
    reconstruction: Tensor,
    pixels: Tensor,
    *,
    black: float,
    ceiling: float = math.inf,
    weight: Tensor | None = None,
) -> Tensor:
    """Peak signal-to-noise ratio of each image.

    Args:
        reconstruction: as for `mse`.
        pixels: likewise.
        black: likewise.
        ceiling: the most that is given, such as `PSNR_CEILING`, in dB.
        weight: as for `mse`.

    Returns:
        Tensor: [B], in dB, infinite where both are equal and there is no ceiling; float64 if an input is,
        otherwise float32.

    Raises:
        TypeError: as `mse`.
    """
    return psnr_of_mse(mse(reconstruction, pixels, black=black, weight=weight), ceiling=ceiling)


def psnr_of_mse(error: Tensor, *, ceiling: float = math.inf) -> Tensor:
    """`psnr` of images whose `mse` is known, of any shape."""
    return (-10 * error.log10()).clamp_max(ceiling)


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
