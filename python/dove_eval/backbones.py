"""Networks that judge pictures: what they are called, and which local weights they need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Distance:
    """A perceptual distance of two images.

    Attributes:
        name: what it truly is, such as "LPIPS (VGG)" or "MobileNetV2 feature distance".
        measure: images [B, 3, S, S] in [-1, 1], twice, to [B].
        identity: of its weights, JSON.
    """

    name: str
    measure: Callable[[Tensor, Tensor], Tensor]
    identity: Any


@dataclass(frozen=True)
class Features:
    """Features whose distributions a Frechet distance compares.

    Attributes:
        name: of the distance, such as "FID" or "Frechet distance (MobileNetV2)".
        measure: images [B, 3, S, S] in [-1, 1] to [B, D].
        identity: of its weights, JSON.
        protocol: how images reach the network, one sentence.
    """

    name: str
    measure: Callable[[Tensor], Tensor]
    identity: Any
    protocol: str


def inception(path: str) -> Features:
    """FID's InceptionV3 from a local file; see `dove_eval.inception`."""
    from dove_eval.inception import PROTOCOL, FidInception

    network = FidInception(path)
    return Features("FID", network, network.digest, f"{PROTOCOL}; weights sha256 {network.digest[:16]}")


def packaged_features(notes: list[str]) -> Features | None:
    notes.append("Frechet distance: no weights")
    return None


def perceptual(args: Any, notes: list[str]) -> Distance | None:
    notes.append("Perceptual distance: no weights")
    return None
