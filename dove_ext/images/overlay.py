"""A relevance map over its picture: what matters keeps its colours, the rest fades."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

FADED = 0.75  # how far a place that does not matter goes towards PAPER
PAPER = 0.97
EDGE = (1.0, 0.25, 0.0)  # around the places that count at least half as much as the one that counts most


def overlay(images: Tensor, relevance: Tensor) -> Tensor:
    """Draw maps over their pictures.

    Each map is stretched so that its largest value is 1: tokens are chosen by what places count beside each
    other. Where little counts the picture is pale and grey. A line goes around the cells that count at least
    half as much as the one that counts most; a map that is the same everywhere has none.

    Args:
        images: float [B, 3, S, S] in [0, 1].
        relevance: [B, h, w], not negative, as `DoveTokens.relevance`.

    Returns:
        Tensor: float32 [B, 3, S, S] in [0, 1], on the images' device.
    """
    size = images.shape[-2:]
    maps = relevance.to(images.device).float()[:, None]
    maps = maps / maps.amax((2, 3), keepdim=True).clamp_min(1e-12)
    strength = F.interpolate(maps, size=size, mode="bilinear")
    images = images.float()
    grey = images.mean(1, keepdim=True).expand_as(images)
    pale = grey + FADED * (PAPER - grey)
    drawn = pale + strength * (images - pale)
    inside = F.interpolate((maps >= 0.5).float(), size=size, mode="nearest")
    width = max(1, size[0] // 128)
    grown = F.max_pool2d(inside, 2 * width + 1, stride=1, padding=width)
    line = (grown > inside).expand_as(drawn)
    colour = torch.tensor(EDGE, device=images.device)[:, None, None].expand_as(drawn)
    return torch.where(line, colour, drawn).clamp(0, 1)
