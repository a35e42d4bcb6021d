"""A closed-form start for models with linear shortcuts: a transform code fitted to the training images.

The patch shortcut becomes the principal components of whole patches, the frequency shortcut orders the
coefficients by the pixel error they save. Nothing is iterated; every learned branch starts at zero, so
training begins at this code's quality and can only add to it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dove_ext.models.dove import DoveModel


@torch.no_grad()
def fit_linear_code(model: DoveModel, pixels: Tensor) -> None:
    """Set both shortcuts from images and silence the convolutions' last layers.

    Args:
        model: with `patch_shortcut` and `shortcut`.
        pixels: [N, 3, S, S] in [-1, 1]; a few hundred images are enough.

    Raises:
        ValueError: if the model lacks a shortcut.
    """
    vqgan = model.vqgan
    if vqgan.patch_in is None or vqgan.patch_out is None or model.shortcut is None:
        raise ValueError("a closed-form start needs a model with patch_shortcut and shortcut")
    side, width = model.config.vqgan.downsampling, model.config.vqgan.latent_channels
    mean, components, deviation = principal_components(pixels, side, width)
    # latent = (patch - mean) . component / deviation, and back
    vqgan.patch_in.weight.copy_((components / deviation).T.unflatten(1, (3, side, side)))
    vqgan.patch_in.bias.copy_(-(mean @ components) / deviation)
    vqgan.patch_out.weight.copy_((components * deviation).T.unflatten(1, (3, side, side)))
    # A transposed convolution has one bias a colour, not a pixel: the mean patch is flat to within 1/1000.
    vqgan.patch_out.bias.copy_(mean.unflatten(0, (3, side * side)).mean(1))
    silence_branches(model)

    total = torch.zeros(model.shortcut.coefficients)
    for chunk in pixels.split(32):
        total += model.shortcut.transform(vqgan.encode(chunk)).pow(2).sum(0)
    worth = deviation.square().repeat(model.config.num_tokens)  # the components are orthonormal in pixels
    model.shortcut.arrange(total / pixels.shape[0], worth)


@torch.no_grad()
def silence_branches(model: DoveModel) -> None:
    """Set the last layer of every learned branch to zero: the model reconstructs by the linear code alone."""
    branches = [
        model.vqgan.quant_conv,
        model.vqgan.decoder.conv_out,
        model.generator.to_token,
        model.token_decoder.to_latent,
    ]
    for last in branches:
        if last is not None:
            last.weight.zero_()
            last.bias.zero_()


def freeze_linear_code(model: DoveModel) -> None:
    """Leave both shortcuts out of training.

    Adam moves every weight by about the learning rate whatever its gradient, which is noise to a code whose
    finest coefficients matter at a thousandth of its coarsest.
    """
    for module in (model.vqgan.patch_in, model.vqgan.patch_out, model.shortcut):
        if module is not None:
            module.requires_grad_(False)


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
    return mean, vectors[:, leading].float(), values[leading].clamp_min(1e-10).sqrt().float()
