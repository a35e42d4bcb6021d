"""A closed-form start for models with linear shortcuts: a transform code fitted to the training images.

The patch shortcut becomes the principal components of whole patches, the frequency shortcut orders the
coefficients by the pixel error they save, a codebook starts from k-means of the latents. The residual
branches, which are learned, start at zero, so training begins at this code's quality.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dove_ext.models.dove import DoveModel
from dove_ext.models.vqgan import VQGAN

FLAT = 1e-3
"""The least deviation that latents are divided by, pixels in [-1, 1]: half of what rounding to 8 bits makes.

Pictures of even colours have none at all; weights that blow it up would not fit float16.
"""


def has_closed_form(model: DoveModel | VQGAN) -> bool:
    """Whether there is a linear code to fit."""
    vqgan = model if isinstance(model, VQGAN) else model.vqgan
    return vqgan.patch_in is not None and (isinstance(model, VQGAN) or model.shortcut is not None)


@torch.no_grad()
def fit_linear_code(model: DoveModel | VQGAN, pixels: Tensor) -> None:
    """Set the linear code from images, and the last layers of the residual branches to zero.

    Args:
        model: one that `has_closed_form`.
        pixels: [N, 3, S, S] in [-1, 1]; a few hundred images are enough.

    Raises:
        ValueError: if the model lacks a shortcut.
    """
    vqgan = model if isinstance(model, VQGAN) else model.vqgan
    if vqgan.patch_in is None or vqgan.patch_out is None or not has_closed_form(model):
        raise ValueError("a closed-form start needs a model with patch_shortcut and shortcut")
    side, width = vqgan.config.downsampling, vqgan.config.latent_channels
    mean, components, deviation = principal_components(pixels, side, width)
    # Distances between latents are what a codebook sees: they must be those of the pixels.
    unit = deviation if vqgan.quantize is None else torch.ones_like(deviation)
    # latent = (patch - mean) . component / unit, and back
    vqgan.patch_in.weight.copy_((components / unit).T.unflatten(1, (3, side, side)))
    vqgan.patch_in.bias.copy_(-(mean @ components) / unit)
    vqgan.patch_out.weight.copy_((components * unit).T.unflatten(1, (3, side, side)))
    # A transposed convolution has one bias a colour, not a pixel: the mean patch is flat to within 1/1000.
    vqgan.patch_out.bias.copy_(mean.unflatten(0, (3, side * side)).mean(1))
    zero_residual_branches(model)
    if vqgan.quantize is not None:
        latents = torch.cat([_linear_latents(vqgan, chunk).flatten(0, 1) for chunk in pixels.split(32)])
        count = vqgan.config.codebook_size
        every = max(1, len(latents) // (16 * count))  # 16 points a centre are enough
        vqgan.quantize.embedding.weight.copy_(k_means(latents[::every], count))
    if isinstance(model, DoveModel) and model.shortcut is not None:
        total = torch.zeros(model.shortcut.coefficients)
        for chunk in pixels.split(32):
            total += model.shortcut.transform(_linear_latents(vqgan, chunk)).pow(2).sum(0)
        worth = unit.square().repeat(model.config.num_tokens)  # the components are orthonormal in pixels
        model.shortcut.arrange(total / pixels.shape[0], worth)
        if model.region is not None:
            left = torch.zeros_like(deviation)
            for chunk in pixels.split(32):
                left += model.region.fit(model.shortcut, _linear_latents(vqgan, chunk))
            # What the coarse picture holds whole leaves rounding alone, which is not to be blown up.
            model.region.spread.copy_((left / pixels.shape[0]).clamp_min(1e-4).sqrt())


def _linear_latents(vqgan: VQGAN, pixels: Tensor) -> Tensor:
    """What `vqgan.encode` gives while its convolutions add nothing, without running them: [B, P, C]."""
    assert vqgan.patch_in is not None
    out: Tensor = vqgan.patch_in(pixels).flatten(2).transpose(1, 2)
    return out


@torch.no_grad()
def zero_residual_branches(model: DoveModel | VQGAN) -> None:
    """Set the last layer of every residual branch to zero: the linear code alone reconstructs."""
    vqgan = model if isinstance(model, VQGAN) else model.vqgan
    branches = [vqgan.quant_conv, vqgan.decoder.conv_out]
    if isinstance(model, DoveModel):
        branches += [model.generator.to_token, model.token_decoder.to_latent]
    for last in branches:
        if last is not None:
            last.weight.zero_()
            last.bias.zero_()


def principal_components(pixels: Tensor, side: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [n], leading components [n, count] and their deviations [count] of all patches, n = 3 * side^2."""
    size = 3 * side * side
    total, outer, patches = torch.zeros(size), torch.zeros(size, size), 0
    for chunk in pixels.split(32):
        rows = F.unfold(chunk.contiguous(), side, stride=side).transpose(1, 2).flatten(0, 1)
        total += rows.sum(0)
        outer += rows.T @ rows
        patches += rows.shape[0]
    mean = total / patches
    values, vectors = torch.linalg.eigh((outer / patches - mean[:, None] * mean).double())
    leading = torch.arange(size - 1, size - 1 - count, -1)
    return mean, vectors[:, leading].float(), values[leading].clamp_min(FLAT**2).sqrt().float()


def k_means(points: Tensor, count: int, rounds: int = 4) -> Tensor:
    """Centres [count, C] of points [N, C], from `rounds` of Lloyd's algorithm.

    The start is points at even steps of their order by size, so that it needs no random numbers; centres
    that lose all their points keep their place.
    """
    order = points.square().sum(1).argsort(stable=True)
    step = torch.linspace(0, len(points) - 1, count).long()
    centres = points[order[step]].clone()
    for _ in range(rounds):
        size = centres.square().sum(1)
        nearest = torch.cat([(size - 2 * part @ centres.T).argmin(1) for part in points.split(4096)])
        members = torch.bincount(nearest, minlength=count)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        centres = torch.where(members[:, None] > 0, sums / members.clamp_min(1)[:, None], centres)
    return centres
