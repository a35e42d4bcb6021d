"""Perceptual distances by name."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

from dove_ext.errors import CheckpointError
from dove_ext.metrics.distance import FeatureDistance
from dove_ext.metrics.lpips import lpips_vgg
from dove_ext.metrics.mobilenet import MobileNetDistance

_MAKERS: dict[str, Callable[[str | Path | None], FeatureDistance]] = {
    "lpips-vgg": lpips_vgg,
    "mobilenet": MobileNetDistance,
}

PERCEPTUAL_DISTANCES = tuple(_MAKERS)


def perceptual_distance(name: str, weights: str | Path | None = None) -> FeatureDistance:
    """A frozen, differentiable distance of images, float32 on the CPU; draws no random numbers.

    Call it with two batches [B, 3, H, W] in [-1, 1]; it returns float32 [B]. Figures of one distance say
    nothing about those of another.

    Args:
        name: "lpips-vgg": LPIPS 0.1, the usual one. "mobilenet": MobileNetV2 feature distance, the fastest;
            it also has `features`.
        weights: the backbone's file, of torchvision; None takes it from the installed package that has it,
            or, for lpips-vgg, downloads it.

    Raises:
        CheckpointError: if the name is unknown, torchvision or a package is missing, the download fails, or
            the file is not the one that is wanted.
    """
    maker = _MAKERS.get(name)
    if maker is None:
        near = get_close_matches(name, _MAKERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise CheckpointError(
            f"there is no perceptual distance {name!r}, only {', '.join(PERCEPTUAL_DISTANCES)}{hint}"
        )
    return maker(weights)
