"""`dove eval segment`: what hidden features tell apart, as pictures: PCA to three colours (3.4, Figure 8)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dove_eval.datasets import ImageSet
from dove_eval.report import Pictures, Section
from dove_eval.sources import DatasetError
from dove_eval.systems import Dove, Vqgan
from dove_ext.images import Fit
from dove_ext.images.files import to_pil

IMAGES = 8


@torch.no_grad()
def hidden_grid(model: Dove, pixels: Tensor, layer: int | None = None) -> Tensor:
    """A generator layer at the image's positions: float32 [B, P, hidden].

    Args:
        model: a DOVE model.
        pixels: [B, 3, S, S] in [-1, 1].
        layer: 1..L; None: the last but one, as nothing reads these positions of the last one.
    """
    dove = model.model
    layer = max(1, len(dove.generator.stack.layers) - 1) if layer is None else layer
    latents = dove.vqgan.encode(pixels.to(dove.device, dove.dtype))
    return dove.generator.image_states(latents, layer).float()


@torch.no_grad()
def decoder_grid(model: Dove, pixels: Tensor) -> Tensor:
    """The token decoder's last layer at all tokens, whose slots are the grid: float32 [B, P, hidden]."""
    kept: list[Tensor] = []
    hook = model.model.token_decoder.stack.register_forward_hook(lambda _, __, output: kept.append(output))
    try:
        tokens, own = model.generate(pixels)
        model.model.render(tokens, torch.full_like(own, tokens.shape[1]))
    finally:
        hook.remove()
    return kept[0].float()


def principal_colours(grid: Tensor) -> tuple[np.ndarray, float]:
    """The first three principal components of features as colours.

    One basis serves all images, so that a colour means the same in each. Components are scaled to their 1st
    and 99th percentile; the sign is the one that makes the largest entry of the direction positive.

    Args:
        grid: [B, P, C], P a square.

    Returns:
        (np.ndarray, float): uint8 [B, side, side, 3], and the share of the variance that the three hold.
    """
    images, positions, width = grid.shape
    flat = grid.reshape(-1, width).double()
    flat = flat - flat.mean(0)
    values, vectors = torch.linalg.eigh(flat.T @ flat)
    basis = vectors[:, -3:].flip(1)
    basis = basis * basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()
    parts = flat @ basis
    low, high = (parts.quantile(q, dim=0) for q in (0.01, 0.99))
    colours = ((parts - low) / (high - low).clamp_min(1e-12)).clamp(0, 1).mul(255).round()
    side = round(positions**0.5)
    share = float(values[-3:].sum() / values.sum().clamp_min(1e-30))
    return colours.to(torch.uint8).reshape(images, side, side, -1).cpu().numpy(), share


def show(
    images: ImageSet, models: Sequence[Dove], vqgan: Vqgan | None, fit: Fit, layer: int | None = None
) -> Section:
    """Pictures of a few images, evenly spread: the original, VQGAN's latents, DOVE's hidden layers."""
    size = models[0].model.config.image_size
    few = images.limit(IMAGES)
    chosen, pixels = few.read(range(len(few)), size, fit)
    if pixels is None:
        raise DatasetError(
            f"none of the {len(few)} images that would be shown can be read; give other images"
        )
    grids: list[tuple[str, Tensor]] = []
    if vqgan is not None:
        grids.append((f"{vqgan.name}: latents", vqgan.latents(pixels).float()))
    for model in models:
        grids.append((f"{model.name}: generator", hidden_grid(model, pixels, layer)))
        grids.append((f"{model.name}: token decoder", decoder_grid(model, pixels)))
    shown = [(name, *principal_colours(grid)) for name, grid in grids]
    originals = to_pil((pixels + 1) / 2)
    rows = []
    for b, index in enumerate(chosen):
        row = [(originals[b], Path(few.items[index].name).name)]
        row += [(Image.fromarray(colours[b]).convert("RGB"), "") for _, colours, _ in shown]
        rows.append(row)
    caption = (
        "The three leading principal components as red, green and blue; within a column, one colour is one "
        "feature. Images evenly spread over the set, not chosen."
    )
    result: dict[str, Any] = {
        "images": [few.items[i].name for i in chosen],
        "variance_share": {name: share for name, _, share in shown},
    }
    side = round(grids[-1][1].shape[1] ** 0.5)
    causal = [m.name for m in models if m.model.config.prefix_attention == "causal"]
    shares = ", ".join(f"{name} {share:.0%}" for name, _, share in shown)
    method = [
        f"{len(chosen)} images of {images.source}, evenly spread, not chosen.",
        f"PCA over all positions of these images together. Share of variance in three components: {shares}.",
        f"Generator: {'the last but one layer' if layer is None else f'layer {layer}'} at the "
        f"{side} x {side} positions of the image. Token decoder: the last hidden layer at all tokens.",
        *(
            f"{name}'s generator is causal: a position sees the rows above it and what is left of it."
            for name in causal
        ),
    ]
    finding = (
        f"What the hidden layers of {models[0].name} tell apart: places that share a colour in a column "
        "below look alike to the model."
    )
    columns = ["original", *(name for name, _, _ in shown)]
    if len(columns) <= 4 and len(rows) % 2 == 0:  # two images a row
        columns *= 2
        rows = [a + b for a, b in zip(rows[::2], rows[1::2], strict=False)]
    pictures = Pictures(columns, rows, caption, smooth=False)
    return Section("segment", "Hidden features as pictures", finding, [pictures], method, result)
