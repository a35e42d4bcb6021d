"""What the library does not measure: absolute errors and structure, one value an image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def as_shown(images: Tensor) -> Tensor:
    """Images [B, 3, H, W] in [-1, 1] rounded to 8 bits, as a viewer gets them."""
    return images.add(1).mul(127.5).round().div(127.5).sub(1)


def l1(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute error of images [B, 3, H, W] in [-1, 1], on the scale 0..1: [B]."""
    return (a.float() - b.float()).div(2).abs().flatten(1).mean(1)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of images [B, 3, H, W] in [-1, 1]: [B], at most 1.

    A Gaussian window of 11 pixels, sigma 1.5; K1 = 0.01, K2 = 0.03; the mean over channels and over all
    windows that lie inside the image.
    """
    # Variances are differences of nearly equal numbers: in float32 those of even areas are off by 1e-4.
    x = torch.arange(11, dtype=torch.float64, device=a.device) - 5
    window = torch.exp(-x.square() / (2 * 1.5**2))
    window = (window / window.sum()).expand(3, 1, 1, 11)

    def blur(image: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(image, window, groups=3), window.transpose(2, 3), groups=3)

    a, b = a.double().add(1).div(2), b.double().add(1).div(2)
    mean_a, mean_b = blur(a), blur(b)
    variance_a = blur(a * a) - mean_a.square()
    variance_b = blur(b * b) - mean_b.square()
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    similarity = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
        (mean_a.square() + mean_b.square() + c1) * (variance_a + variance_b + c2)
    )
    return similarity.flatten(1).mean(1).float()
