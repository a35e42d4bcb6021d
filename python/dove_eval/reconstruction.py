"""`dove eval reconstruction`: quality against token count (3.1, Table 2), beside VQGAN, JPEG and WebP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dove_eval import frechet, quality
from dove_eval.backbones import Distance, Features
from dove_eval.bootstrap import mean
from dove_eval.datasets import ImageSet
from dove_eval.rows import Rows, fill
from dove_eval.settings import COUNTS
from dove_eval.systems import OWN, Codec, Dove, Reconstruction, Vqgan
from dove_ext.images import Fit
from dove_ext.images.files import to_pil
from dove_ext.metrics import PSNR_CEILING, mse, psnr

QUALITIES = (5, 10, 25, 50, 75, 90)  # of the plain rate table

# column -> heading, digits, the direction that is better
METRICS = {
    "psnr": ("PSNR (dB)", 2, "higher"),
    "ssim": ("SSIM", 4, "higher"),
    "l1": ("L1", 4, "lower"),
    "mse": ("MSE", 5, "lower"),
    "perceptual": ("perceptual", 4, "lower"),
}

Reconstructor = Dove | Vqgan | Codec


@dataclass(frozen=True)
class Setup:
    """What is measured how.

    Attributes:
        systems: what stands side by side; the first is the model in question.
        counts: token counts.
        distance: a perceptual distance, or None.
        features: of the Frechet distance, or None.
        fit: how an image becomes square.
        batch_size: images at once.
    """

    systems: Sequence[Reconstructor]
    counts: Sequence[int] = COUNTS
    distance: Distance | None = None
    features: Features | None = None
    fit: Fit = "crop"
    batch_size: int = 16


def measure(images: ImageSet, size: int, setup: Setup, output: Path) -> Rows:
    """A row of quality numbers for each image; columns are "SYSTEM-POINT-METRIC"."""
    codecs = [s for s in setup.systems if isinstance(s, Codec)]

    def compute(_: list[int], pixels: Tensor) -> dict[str, Tensor]:
        row: dict[str, Tensor] = {}
        if setup.features is not None:
            row["original-features"] = setup.features.measure(pixels)
        # Once for all that it is compared with.
        original = None if setup.distance is None else setup.distance.network.describe(pixels)
        for system in setup.systems:
            for result in system.reconstruct(pixels, setup.counts):
                row |= _judge(pixels, original, result, f"{system.key}-{result.point}", setup)
        for codec in codecs:
            row |= _rate(codec, pixels)
        return row

    identity = [
        [(s.key, s.identity) for s in setup.systems],
        list(setup.counts),
        None if setup.distance is None else [setup.distance.name, setup.distance.identity],
        None if setup.features is None else [setup.features.name, setup.features.identity],
        torch.__version__,
    ]
    return fill(
        output, "reconstruction", images, compute, identity=identity, size=size, fit=setup.fit,
        batch_size=setup.batch_size,
    )  # fmt: skip


def _judge(
    pixels: Tensor, original: list[Tensor] | None, result: Reconstruction, prefix: str, setup: Setup
) -> dict[str, Tensor]:
    image = quality.as_shown(result.images)
    row = {
        "tokens": result.tokens,
        "bytes": result.bytes,
        "psnr": psnr(image, pixels, black=-1.0, ceiling=PSNR_CEILING),
        "ssim": quality.ssim(image, pixels),
        "l1": quality.l1(image, pixels),
        "mse": mse(image, pixels, black=-1.0),
    }
    if setup.distance is not None and original is not None:
        network = setup.distance.network
        row["perceptual"] = network.compare(network.describe(image), original)
    if setup.features is not None:
        row["features"] = setup.features.measure(image)
    return {f"{prefix}-{name}": value for name, value in row.items()}


def _rate(codec: Codec, pixels: Tensor) -> dict[str, Tensor]:
    row = {}
    pictures = to_pil((pixels + 1) / 2)
    for q in QUALITIES:
        files = [codec.encode(picture, q) for picture in pictures]
        images = torch.stack([codec.decode(data) for data in files])
        row[f"rate-{codec.key}-{q}-bytes"] = torch.tensor([float(len(data)) for data in files])
        row[f"rate-{codec.key}-{q}-psnr"] = psnr(images, pixels, black=-1.0, ceiling=PSNR_CEILING)
    return row


def summarise(rows: Rows, setup: Setup) -> dict[str, Any]:
    """Means with confidence intervals of every system at every point (JSON)."""
    series = []
    reference = None
    if setup.features is not None and len(rows.good) > 1:
        reference = frechet.Reference(rows["original-features"], rows.good)
    for system in setup.systems:
        points = []
        for point in measured(rows, system.key):
            prefix = f"{system.key}-{point}"
            entry: dict[str, Any] = {"point": point}
            for name in ("tokens", "bytes", *METRICS):
                if f"{prefix}-{name}" in rows.names:
                    entry[name] = mean(rows.values(f"{prefix}-{name}")).to_json()
            if reference is not None:
                entry["frechet"] = reference.distance(rows[f"{prefix}-features"]).to_json()
            points.append(entry)
        series.append({"system": system.key, "name": system.name, "points": points})
    rate = [
        {
            "system": codec.key,
            "name": codec.name,
            "quality": q,
            "bytes": float(rows.values(f"rate-{codec.key}-{q}-bytes").mean()),
            "psnr": float(rows.values(f"rate-{codec.key}-{q}-psnr").mean()),
        }
        for codec in setup.systems
        if isinstance(codec, Codec)
        for q in QUALITIES
    ]
    return {
        "images": len(rows.good),
        "unreadable": rows.images.failed,
        "token_bytes": {s.key: s.token_bytes for s in setup.systems},
        "perceptual": None if setup.distance is None else setup.distance.name,
        "frechet": None if setup.features is None else setup.features.name,
        "series": series,
        "rate": rate,
    }


def measured(rows: Rows, system: str) -> list[str]:
    """The points that a system was measured at: token counts rising, then its own length."""
    names = [name.split("-") for name in rows.names]
    points = [parts[1] for parts in names if parts[0] == system and parts[-1] == "psnr"]
    return sorted(points, key=lambda point: (point == OWN, int(point) if point != OWN else 0))


def monotone(result: dict[str, Any]) -> dict[str, bool]:
    """Whether each metric of the first system improves with every step of the token count."""
    fixed = [p for p in result["series"][0]["points"] if p["point"] != OWN]
    better = {name: direction == "higher" for name, (_, _, direction) in METRICS.items()} | {"frechet": False}
    out = {}
    for name, rising in better.items():
        if fixed and name in fixed[0]:
            steps = np.diff([p[name]["value"] for p in fixed])
            out[name] = bool((steps > 0).all() if rising else (steps < 0).all())
    return out
