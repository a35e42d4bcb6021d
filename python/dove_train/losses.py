"""What is minimised: each function is one equation, per sample, so that the loop decides how to average."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def mean_squared_error(reconstruction: Tensor, pixels: Tensor) -> Tensor:
    """L_mse of each image (Eq. 2).

    Args:
        reconstruction: [B, 3, S, S], nominally in [-1, 1].
        pixels: [B, 3, S, S] in [-1, 1].

    Returns:
        Tensor: float32 [B], in units of the [-1, 1] range squared.
    """
    return (reconstruction.float() - pixels.float()).square().flatten(1).mean(1)


def reconstruction_loss(
    reconstruction: Tensor,
    pixels: Tensor,
    *,
    mse_weight: float = 1.0,
    perceptual: nn.Module | None = None,
    perceptual_weight: float = 0.1,
) -> Tensor:
    """L_rec = lambda_mse L_mse + lambda_perc L_perc (Eq. 2 without its adversarial term).

    The adversarial term trains the pixels but says nothing of an image's quality by itself, so thresholds
    compare this sum.

    Args:
        reconstruction: as for `mean_squared_error`.
        pixels: likewise.
        mse_weight: lambda_mse.
        perceptual: a distance of `dove_ext.metrics`, ([B, 3, S, S], [B, 3, S, S]) to [B]; None leaves it out.
        perceptual_weight: lambda_perc.

    Returns:
        Tensor: float32 [B].
    """
    loss = mse_weight * mean_squared_error(reconstruction, pixels)
    if perceptual is None or perceptual_weight == 0:
        return loss
    return loss + perceptual_weight * perceptual(reconstruction, pixels)


def paper_eos_loss(p_eos: Tensor, stops: Tensor, loss: Tensor, threshold: float) -> Tensor:
    """L_eos of each image by the paper's rule (Eq. 3).

    p_eos(m) where L_rec > threshold (more tokens are needed), otherwise -1/(m-1) sum_{i<m} p_eos(i) (fewer
    are enough); m is the position of EOS, counted from 1. An image without EOS has its last position as m.

    Args:
        p_eos: [B, K].
        stops: int32 [B], m - 1, or K without an EOS; 0 too, though one token is kept then.
        loss: [B], L_rec at the lengths that follow; no gradient is taken through it.
        threshold: mean L_rec of the last steps.

    Returns:
        Tensor: [B].
    """
    last = stops.long().clamp_max(p_eos.shape[1] - 1)
    at_end = p_eos.gather(1, last[:, None])[:, 0]
    return torch.where(loss.detach() > threshold, at_end, earlier_eos_loss(p_eos, stops))


def earlier_eos_loss(p_eos: Tensor, stops: Tensor) -> Tensor:
    """-1/(m-1) sum_{i<m} p_eos(i) of each image: the second case of Eq. 3, and L_pen (2.3).

    Args:
        p_eos: [B, K].
        stops: as for `paper_eos_loss`.

    Returns:
        Tensor: [B]; 0 where m is 1: nothing is before it.
    """
    slots = p_eos.shape[1]
    last = stops.long().clamp_max(slots - 1)
    before = torch.arange(slots, device=p_eos.device) < last[:, None]
    return -(p_eos * before).sum(1) / last.clamp_min(1)


def sampled_eos_loss(p_eos: Tensor, lengths: Tensor, loss: Tensor, threshold: float) -> Tensor:
    """L_eos of each image by the sampled-length rule: cross-entropy of p_eos at the sampled length.

    Stopping at position n (from 0) keeps n tokens, so the label of position `length` is whether L_rec with
    `length` tokens is at most the threshold. Unlike in Eq. 3 the label does not depend on the head's own
    decisions, and p_eos estimates the probability that the loss here is small enough. It is 0 at length K,
    which no EOS ends.

    Args:
        p_eos: [B, K].
        lengths: int32 [B], the sampled ones.
        loss: [B], L_rec at these lengths; no gradient is taken through it.
        threshold: the loss that is good enough.

    Returns:
        Tensor: [B]; average it over the images with length < K.
    """
    slots = p_eos.shape[1]
    position = lengths.clamp_max(slots - 1).long()[:, None]
    p = p_eos.gather(1, position)[:, 0].clamp(1e-6, 1 - 1e-6)
    label = (loss.detach() <= threshold).to(p.dtype)
    with torch.autocast(p.device.type, enabled=False):  # on CUDA autocast refuses this function in any dtype
        entropy = F.binary_cross_entropy(p, label, reduction="none")
    return entropy * (lengths < slots)


def gaussian_loss(divergence: Tensor, lengths: Tensor) -> Tensor:
    """Mean KL of the kept tokens of each image (DOVE (Gaussian), appendix D).

    Args:
        divergence: [B, K], `Generator.divergence`.
        lengths: int32 [B].

    Returns:
        Tensor: [B].
    """
    kept = torch.arange(divergence.shape[1], device=divergence.device) < lengths[:, None]
    return (divergence * kept).sum(1) / lengths.clamp_min(1)


def quantiser_loss(latents: Tensor, codes: Tensor, commitment: float = 0.25) -> Tensor:
    """|sg(z) - e|^2 + beta |z - sg(e)|^2 of each image (VQ-VAE, arXiv 1711.00937, Eq. 3), for the baseline.

    Args:
        latents: z, [B, P, C].
        codes: e, the nearest codebook entries [B, P, C].
        commitment: beta.

    Returns:
        Tensor: float32 [B].
    """
    z, e = latents.float(), codes.float()
    codebook = (z.detach() - e).square().flatten(1).mean(1)
    return codebook + commitment * (z - e.detach()).square().flatten(1).mean(1)
