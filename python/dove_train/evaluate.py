"""Quality by token count and the model's own lengths on held-out images.

    python -m dove_train.evaluate --model dove-tiny --data photos/ shard.tar

prints what a model card quotes, as JSON. With --oracle it also says what lengths chosen with full knowledge
of every image's loss at every length could reach: a ceiling for any stop head.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dove_ext.config import VQGANConfig
from dove_ext.errors import DoveError
from dove_ext.memory import keep_freed_memory
from dove_ext.metrics import PERCEPTUAL_DISTANCES, laplacian_variance, perceptual_distance, psnr
from dove_ext.models.dove import DoveModel
from dove_ext.models.vqgan import VQGAN

TOKEN_COUNTS = (4, 8, 16, 32, 64, 128, 256)


@torch.no_grad()
def evaluate(
    model: DoveModel | VQGAN, pixels: Tensor, *, batch_size: int = 25, perceptual: nn.Module | None = None
) -> dict[str, Any]:
    """Measure a model on images.

    Args:
        model: in evaluation mode, on any device.
        pixels: [N, 3, S, S] in [-1, 1].
        batch_size: images that run at once.
        perceptual: a distance to measure besides PSNR.

    Returns:
        dict: mean PSNR (and distance) by token count and at the model's own lengths; of those the mean, 5th
        and 95th percentile, Pearson correlation with Laplacian variance, and their mean squared error over
        that at full length; how many lengths fall into each sixteenth of 0..K. A VQGAN has its one length.
    """
    device = next(model.parameters()).device
    if isinstance(model, VQGAN):
        return _evaluate_vqgan(model, pixels, batch_size, perceptual)
    slots = model.config.num_tokens
    counts = [n for n in TOKEN_COUNTS if n <= slots]
    measures: dict[str, list[Tensor]] = {}
    lengths = []
    for chunk in pixels.split(batch_size):
        chunk = chunk.to(device)
        tokens, hidden, _ = model.generate(model.condition(chunk))
        own = model.generator.lengths(hidden)
        kept = {str(n): torch.full_like(own, n) for n in {*counts, slots}} | {"own": own}
        for name, count in kept.items():
            for measure, values in _measure(model.render(tokens, count), chunk, perceptual).items():
                measures.setdefault(f"{measure} {name}", []).append(values.cpu())
        lengths.append(own.cpu())
    mean = {name: torch.cat(values).mean().item() for name, values in measures.items()}
    length = torch.cat(lengths).numpy().astype(np.float64)
    complexity = laplacian_variance(pixels).numpy()
    varied = length.std() > 0 and complexity.std() > 0
    result = {
        "images": len(pixels),
        "psnr_db": {str(n): round(mean[f"psnr {n}"], 3) for n in counts},
        "psnr_db_own_length": round(mean["psnr own"], 3),
        "length_mean": round(float(length.mean()), 1),
        "length_p5": float(np.percentile(length, 5)),
        "length_p95": float(np.percentile(length, 95)),
        "length_histogram": np.histogram(length, bins=16, range=(0, slots))[0].tolist(),
        "length_pearson_laplacian": round(float(np.corrcoef(length, complexity)[0, 1]), 3) if varied else 0.0,
        "loss_ratio_own_to_full": round(mean["mse own"] / max(mean[f"mse {slots}"], 1e-12), 3),
    }
    if perceptual is not None:
        result["perceptual"] = {str(n): round(mean[f"perceptual {n}"], 4) for n in [*counts, "own"]}
    return result


def _evaluate_vqgan(
    model: VQGAN, pixels: Tensor, batch_size: int, perceptual: nn.Module | None
) -> dict[str, Any]:
    device = next(model.parameters()).device
    measures: dict[str, list[Tensor]] = {}
    for chunk in pixels.split(batch_size):
        chunk = chunk.to(device)
        latents = model.encode(chunk)
        codes = latents if model.quantize is None else model.quantize(latents)[0]
        for name, values in _measure(model.decode(codes), chunk, perceptual).items():
            measures.setdefault(name, []).append(values.cpu())
    mean = {name: torch.cat(values).mean().item() for name, values in measures.items()}
    result = {"images": len(pixels), "psnr_db": {str(latents.shape[1]): round(mean["psnr"], 3)}}
    if perceptual is not None:
        result["perceptual"] = {str(latents.shape[1]): round(mean["perceptual"], 4)}
    return result


def _measure(image: Tensor, original: Tensor, perceptual: nn.Module | None) -> dict[str, Tensor]:
    error = (image.float().clamp(-1, 1) - original.float()).square().flatten(1).mean(1)
    out = {"psnr": psnr(image, original).clamp_max(100), "mse": error}  # so that there is a mean
    if perceptual is not None:
        out["perceptual"] = perceptual(image.float().clamp(-1, 1), original.float())
    return out


@torch.no_grad()
def loss_by_length(
    model: DoveModel, pixels: Tensor, *, every: int = 8, batch_size: int = 25
) -> tuple[Tensor, Tensor]:
    """Mean squared error of each image at each length.

    Returns:
        (Tensor, Tensor): lengths [C], every `every`th up to K and the first few, and errors float32 [N, C].
    """
    slots = model.config.num_tokens
    counts = torch.tensor(sorted({1, 2, 4, *range(every, slots + 1, every), slots}), dtype=torch.int32)
    rows = []
    for chunk in pixels.split(batch_size):
        tokens = model.generate(model.condition(chunk)).tokens
        images = (model.render(tokens, n.expand(len(chunk)).contiguous()) for n in counts)
        rows.append(torch.stack([_measure(image, chunk, None)["mse"] for image in images], dim=1))
    return counts, torch.cat(rows)


def best_lengths(counts: Tensor, errors: Tensor, mean_length: float) -> Tensor:
    """Lengths [N] that minimise the summed error at a mean length, knowing all errors [N, C].

    The sum under a constraint on the mean is minimised by minimising error + lambda x length for each image,
    with the lambda that meets the constraint.
    """
    low, high = 1e-12, 1.0
    for _ in range(60):
        price = (low * high) ** 0.5
        chosen = counts[(errors + price * counts).argmin(1)].float()
        low, high = (price, high) if chosen.mean() > mean_length else (low, price)
    return counts[(errors + high * counts).argmin(1)]


def oracle(model: DoveModel, pixels: Tensor, mean_lengths: tuple[float, ...]) -> list[dict[str, float]]:
    """What lengths chosen with full knowledge of the losses reach, at each of these mean lengths."""
    counts, errors = loss_by_length(model, pixels)
    complexity = laplacian_variance(pixels).numpy()
    rows = []
    for target in mean_lengths:
        lengths = best_lengths(counts, errors, target)
        error = errors.gather(1, (counts == lengths[:, None]).int().argmax(1, keepdim=True))
        numbers = lengths.numpy().astype(np.float64)
        rows.append(
            {
                "length_mean": round(float(numbers.mean()), 1),
                "length_p5": float(np.percentile(numbers, 5)),
                "length_p95": float(np.percentile(numbers, 95)),
                "loss_ratio_own_to_full": round((error.mean() / errors[:, -1].mean()).item(), 3),
                "length_pearson_laplacian": round(float(np.corrcoef(numbers, complexity)[0, 1]), 3),
            }
        )
    return rows


def main() -> None:
    """Evaluate a model on images from folders or tar shards."""
    from dove_train.data import held_out_images

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="dove-tiny", help="shipped name, folder or hub id")
    parser.add_argument("--vqgan", action="store_true", help="the model is a VQGAN baseline")
    parser.add_argument(
        "--data", nargs="+", type=Path, required=True, help="image folders, tar shards, images"
    )
    parser.add_argument("--limit", type=int, default=1_000_000, help="images used, evenly spread")
    parser.add_argument("--perceptual", choices=sorted(PERCEPTUAL_DISTANCES), help="a distance besides PSNR")
    parser.add_argument("--oracle", nargs="+", type=float, metavar="MEAN", help="mean lengths to look at")
    args = parser.parse_args()
    if args.limit < 1:
        parser.error(f"--limit must be at least 1, got {args.limit}")
    keep_freed_memory()
    try:
        kind = VQGAN if args.vqgan else DoveModel
        model: Any = kind.from_pretrained(args.model)
        size = 256 if isinstance(model.config, VQGANConfig) else model.config.image_size
        images, _ = held_out_images(args.data, size, args.limit)
        distance = perceptual_distance(args.perceptual) if args.perceptual else None
    except DoveError as error:
        sys.exit(str(error))
    result = evaluate(model, images, perceptual=distance)
    if args.oracle and not args.vqgan:
        result["oracle"] = oracle(model, images, tuple(args.oracle))
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
