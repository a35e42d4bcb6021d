"""Quality by token count and the model's own lengths on held-out images.

    python -m dove_train.evaluate --model dove-tiny --data photos/ shard.tar

prints what a model card quotes, as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dove_ext.errors import DoveError
from dove_ext.models.dove import DoveModel

TOKEN_COUNTS = (16, 32, 64, 128, 256)


def psnr(reconstruction: Tensor, pixels: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of images in [-1, 1], after clamping: [B]."""
    error = (reconstruction.float().clamp(-1, 1) - pixels.float()).div(2).square().flatten(1).mean(1)
    return -10 * error.clamp_min(1e-10).log10()


def laplacian_variance(pixels: Tensor) -> Tensor:
    """Variance of the 4-neighbour Laplacian of the luminance in 0..255: [B] (the paper's complexity)."""
    red, green, blue = ((pixels.float() + 1) * 127.5).unbind(1)
    grey = (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    return F.conv2d(grey, kernel).flatten(1).var(1, unbiased=False)


@torch.no_grad()
def evaluate(model: DoveModel, pixels: Tensor, batch_size: int = 25) -> dict[str, Any]:
    """Measure a model on images [N, 3, S, S] in [-1, 1].

    Returns:
        dict: mean PSNR by token count and at the model's own lengths, their mean, 5th and 95th percentile,
        Pearson correlation with Laplacian variance, and the loss at own lengths over that at full length.
    """
    slots = model.config.num_tokens
    counts = [n for n in TOKEN_COUNTS if n <= slots]
    quality: dict[int, list[Tensor]] = {n: [] for n in counts}
    own, lengths, own_mse, full_mse = [], [], [], []
    was_training = model.training
    model.eval()
    for chunk in pixels.split(batch_size):
        tokens, hidden = model.generate(chunk)
        kept = model.generator.first_stop(hidden, None).clamp_min(1)
        for n in counts:
            image = model.render(tokens, torch.full_like(kept, n))
            quality[n].append(psnr(image, chunk))
        full_mse.append((image - chunk).square().mean())
        image = model.render(tokens, kept)
        own_mse.append((image - chunk).square().mean())
        own.append(psnr(image, chunk))
        lengths.append(kept)
    model.train(was_training)
    length = torch.cat(lengths).numpy().astype(np.float64)
    complexity = laplacian_variance(pixels).numpy()
    varied = length.std() > 0 and complexity.std() > 0
    return {
        "images": len(pixels),
        "psnr_db": {str(n): round(torch.cat(q).mean().item(), 3) for n, q in quality.items()},
        "psnr_db_own_length": round(torch.cat(own).mean().item(), 3),
        "length_mean": round(float(length.mean()), 1),
        "length_p5": float(np.percentile(length, 5)),
        "length_p95": float(np.percentile(length, 95)),
        "length_pearson_laplacian": round(float(np.corrcoef(length, complexity)[0, 1]), 3) if varied else 0.0,
        "loss_ratio_own_to_full": round((sum(own_mse) / sum(full_mse)).item(), 3),
    }


def main() -> None:
    """Evaluate a model on images from folders or tar shards."""
    from dove_train.data import held_out_images

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="dove-tiny", help="shipped name, folder or hub id")
    parser.add_argument(
        "--data", nargs="+", type=Path, required=True, help="image folders, tar shards, images"
    )
    parser.add_argument("--limit", type=int, default=1_000_000, help="images used, evenly spread")
    args = parser.parse_args()
    try:
        model = DoveModel.from_pretrained(args.model)
        images = held_out_images(args.data, model.config.image_size, args.limit)
    except DoveError as error:
        sys.exit(str(error))
    print(json.dumps(evaluate(model, images), indent=2))


if __name__ == "__main__":
    main()
