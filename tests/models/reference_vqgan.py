"""The f16 VQGAN of the public taming checkpoints, written plainly from their parameter names.

A function over a state dict, channels first, float32 or float64, without any module of dove_ext: what our
channels-last modules are compared with.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = Mapping[str, Tensor]


def conv(w: Weights, name: str, x: Tensor, **how: int) -> Tensor:
    return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], **how)


def norm(w: Weights, name: str, x: Tensor) -> Tensor:
    """GroupNorm of 32 groups, from its definition."""
    batch, channels, height, width = x.shape
    groups = x.reshape(batch, 32, -1)
    mean = groups.mean(-1, keepdim=True)
    variance = (groups - mean).pow(2).mean(-1, keepdim=True)
    normed = ((groups - mean) / (variance + 1e-6).sqrt()).reshape(batch, channels, height, width)
    return normed * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def residual(w: Weights, name: str, x: Tensor) -> Tensor:
    h = conv(w, f"{name}.conv1", swish(norm(w, f"{name}.norm1", x)), padding=1)
    h = conv(w, f"{name}.conv2", swish(norm(w, f"{name}.norm2", h)), padding=1)
    if f"{name}.nin_shortcut.weight" in w:
        x = conv(w, f"{name}.nin_shortcut", x)
    return x + h


def attend(w: Weights, name: str, x: Tensor) -> Tensor:
    h = norm(w, f"{name}.norm", x)
    q, k, v = (conv(w, f"{name}.{part}", h).flatten(2) for part in "qkv")  # [B, C, P]
    weight = torch.softmax(torch.einsum("bci,bcj->bij", q, k) * q.shape[1] ** -0.5, dim=-1)
    mixed = torch.einsum("bij,bcj->bci", weight, v).reshape(x.shape)
    return x + conv(w, f"{name}.proj_out", mixed)


def middle(w: Weights, name: str, x: Tensor) -> Tensor:
    x = residual(w, f"{name}.block_1", x)
    x = attend(w, f"{name}.attn_1", x)
    return residual(w, f"{name}.block_2", x)


def level(w: Weights, name: str, x: Tensor, blocks: int) -> Tensor:
    for j in range(blocks):
        x = residual(w, f"{name}.block.{j}", x)
        if f"{name}.attn.{j}.q.weight" in w:
            x = attend(w, f"{name}.attn.{j}", x)
    return x


def encode(w: Weights, image: Tensor) -> Tensor:
    """Image [B, 3, S, S] in [-1, 1] to H_v [B, P, 256], the grid row by row."""
    x = conv(w, "encoder.conv_in", image, padding=1)
    for i in range(5):
        x = level(w, f"encoder.down.{i}", x, 2)
        if i < 4:
            x = conv(w, f"encoder.down.{i}.downsample.conv", F.pad(x, (0, 1, 0, 1)), stride=2)
    x = swish(norm(w, "encoder.norm_out", middle(w, "encoder.mid", x)))
    latents = conv(w, "quant_conv", conv(w, "encoder.conv_out", x, padding=1))
    return latents.permute(0, 2, 3, 1).flatten(1, 2)


def decode(w: Weights, latents: Tensor) -> Tensor:
    """H [B, P, 256] to an image [B, 3, S, S]."""
    side = int(latents.shape[1] ** 0.5)
    grid = latents.reshape(latents.shape[0], side, side, -1).permute(0, 3, 1, 2).contiguous()
    x = conv(w, "decoder.conv_in", conv(w, "post_quant_conv", grid), padding=1)
    x = middle(w, "decoder.mid", x)
    for i in (4, 3, 2, 1, 0):
        x = level(w, f"decoder.up.{i}", x, 3)
        if i > 0:
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            x = conv(w, f"decoder.up.{i}.upsample.conv", x, padding=1)
    return conv(w, "decoder.conv_out", swish(norm(w, "decoder.norm_out", x)), padding=1)


def quantize(w: Weights, latents: Tensor) -> Tensor:
    """Index of the nearest codebook entry at each position, [B, P]."""
    codes = w["quantize.embedding.weight"]
    return (latents[:, :, None] - codes).pow(2).sum(-1).argmin(-1)
