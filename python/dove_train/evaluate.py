"""What a run's log says of held-out images. The figures that a model is quoted by come from `dove eval`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dove_ext.metrics import OWN, PSNR_CEILING, at_lengths, laplacian_variance, psnr
from dove_ext.models.dove import DoveModel
from dove_ext.models.vqgan import VQGAN

TOKEN_COUNTS = (4, 8, 16, 32, 64, 128, 256)


@torch.no_grad()
def evaluate(model: DoveModel | VQGAN, pixels: Tensor, *, batch_size: int = 25) -> dict[str, Any]:
    """Measure a model on images, which are not rounded to 8 bits.

    Args:
        model: in evaluation mode, on any device.
        pixels: [N, 3, S, S] in [-1, 1].
        batch_size: images that run at once.

    Returns:
        dict: mean PSNR by token count and at the model's own lengths; of those the mean, 5th and 95th
        percentile, and Pearson correlation with Laplacian variance. A VQGAN has its one length.
    """
    quality: dict[str, list[Tensor]] = {}
    lengths = []
    for chunk in pixels.split(batch_size):
        if isinstance(model, VQGAN):
            point, images = _all_codes(model, chunk)
            quality.setdefault(point, []).append(_decibel(images, chunk))
            continue
        for at in at_lengths(model, chunk, TOKEN_COUNTS):
            quality.setdefault(at.point, []).append(_decibel(at.images, chunk))
            if at.point == OWN:
                lengths.append(at.lengths.cpu())
    decibel = {point: round(torch.cat(values).mean().item(), 3) for point, values in quality.items()}
    result: dict[str, Any] = {"images": len(pixels)}
    result["psnr_db"] = {point: value for point, value in decibel.items() if point != OWN}
    if not lengths:
        return result
    length = torch.cat(lengths).numpy().astype(np.float64)
    complexity = laplacian_variance(pixels).numpy()
    varied = length.std() > 0 and complexity.std() > 0
    return result | {
        "psnr_db_own_length": decibel[OWN],
        "length_mean": round(float(length.mean()), 1),
        "length_p5": float(np.percentile(length, 5)),
        "length_p95": float(np.percentile(length, 95)),
        "length_pearson_laplacian": round(float(np.corrcoef(length, complexity)[0, 1]), 3) if varied else 0.0,
    }


def _all_codes(model: VQGAN, pixels: Tensor) -> tuple[str, Tensor]:
    """The number of a VQGAN's codes as text, and the images that they give."""
    latents = model.encode(pixels.to(next(model.parameters()).device))
    codes = latents if model.quantize is None else model.quantize(latents)[0]
    return str(latents.shape[1]), model.decode(codes)


def _decibel(images: Tensor, originals: Tensor) -> Tensor:
    return psnr(images.cpu(), originals, black=-1.0, ceiling=PSNR_CEILING)
