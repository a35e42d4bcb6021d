"""What lengths chosen with full knowledge of every image's error could reach: a ceiling for any stop head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dove_eval import quality
from dove_eval.datasets import ImageSet
from dove_eval.report import Table
from dove_eval.rows import Rows, fill
from dove_eval.systems import OWN, Dove
from dove_ext.images import Fit
from dove_ext.metrics import laplacian_variance, mse

STEP = 8  # tokens between two lengths that the oracle may choose


def counts_of(model: Dove) -> list[int]:
    """The lengths that the oracle may choose: the first few, and every eighth up to full length."""
    slots = model.model.config.num_tokens
    return sorted({n for n in (1, 2, 4) if n < slots} | {*range(STEP, slots + 1, STEP), slots})


def measure(images: ImageSet, model: Dove, output: Path, *, fit: Fit, batch_size: int) -> Rows:
    """Complexity, and the squared error at each of `counts_of`, for each image."""
    counts = counts_of(model)

    def compute(_: list[int], pixels: Tensor) -> dict[str, Tensor]:
        errors = [
            mse(quality.as_shown(r.images), pixels, black=-1.0)
            for r in model.reconstruct(pixels, counts)
            if r.point != OWN
        ]
        return {"complexity": laplacian_variance(pixels), "errors": torch.stack(errors, dim=1)}

    return fill(
        output, f"oracle-{model.key}", images, compute, identity=[model.identity, counts, torch.__version__],
        size=model.model.config.image_size, fit=fit, batch_size=batch_size,
    )  # fmt: skip


def best_lengths(counts: np.ndarray, errors: np.ndarray, mean_length: float) -> np.ndarray:
    """Which lengths minimise the summed error at a mean length.

    The sum under a constraint on the mean is minimised by minimising error + lambda x length for each image,
    with the lambda that meets the constraint.

    Args:
        counts: lengths to choose from, [C].
        errors: of each image at each of them, [N, C].
        mean_length: the most that the chosen lengths may be on average, at least the smallest of `counts`.

    Returns:
        np.ndarray: int64 [N], indices into `counts`.
    """
    low, high = 1e-12, max(1.0, float(np.ptp(errors)))  # at the highest price every image takes the least
    for _ in range(60):
        price = (low * high) ** 0.5
        chosen = counts[(errors + price * counts).argmin(1)]
        low, high = (price, high) if chosen.mean() > mean_length else (low, price)
    return np.asarray((errors + high * counts).argmin(1))


def summarise(rows: Rows, model: Dove, mean_lengths: Sequence[float]) -> list[dict[str, Any]]:
    """What is reached at each mean length (JSON)."""
    counts, complexity = np.array(counts_of(model)), rows.values("complexity")
    errors = rows["errors"][rows.good].astype(np.float64)
    out = []
    for target in mean_lengths:
        chosen = best_lengths(counts, errors, target)
        length = counts[chosen]
        varied = len(length) > 2 and np.ptp(length) > 0 and np.ptp(complexity) > 0
        error, full = errors[np.arange(len(chosen)), chosen].mean(), errors[:, -1].mean()
        out.append(
            {
                "asked": float(target),
                "length": float(length.mean()),
                "percentiles": {str(p): float(np.percentile(length, p)) for p in (5, 95)},
                "mse": float(error),
                "mse_over_full": float(error / full) if full else None,
                "pearson": float(np.corrcoef(length, complexity)[0, 1]) if varied else None,
            }
        )
    return out


def table(result: Sequence[dict[str, Any]]) -> Table:
    """The report's table."""
    rows = [
        (
            f"{row['length']:.1f}",
            f"{row['percentiles']['5']:.0f} to {row['percentiles']['95']:.0f}",
            "undefined" if row["mse_over_full"] is None else f"{row['mse_over_full']:.2f}",
            "undefined" if row["pearson"] is None else f"{row['pearson']:.3f}",
        )
        for row in result
    ]
    heads = ("mean length", "5th to 95th percentile", "error over that at full length", "Pearson")
    return Table(heads, rows, "Lengths chosen with full knowledge of every image's error", beside=True)
