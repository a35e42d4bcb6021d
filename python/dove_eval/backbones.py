"""Networks that judge pictures: what they are called, and which local weights they need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dove_eval.settings import DISTANCES
from dove_eval.shift_tolerant import st_lpips
from dove_ext.errors import CheckpointError
from dove_ext.metrics import perceptual_distance
from dove_ext.metrics.distance import FeatureDistance
from dove_ext.metrics.mobilenet import MobileNetDistance
from dove_ext.models.pretrained import weights_digest

SHIFT_TOLERANT = {"st-lpips": "alex", "st-lpips-vgg": "vgg"}


@dataclass(frozen=True)
class Distance:
    """A perceptual distance of two images.

    Attributes:
        name: what it truly is, such as "LPIPS (VGG)" or "MobileNetV2 feature distance".
        network: compares images [B, 3, S, S] in [-1, 1].
        identity: of its weights, JSON.
    """

    name: str
    network: FeatureDistance
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


def inception(path: str | Path) -> Features:
    """FID's InceptionV3 from a local file; see `dove_eval.inception`."""
    from dove_eval.inception import PROTOCOL, FidInception

    network = FidInception(path)
    built = f"weights sha256 {network.digest[:16]}, torch {torch.__version__}"
    return Features("FID", network, network.digest, f"{PROTOCOL}; {built}")


def load(
    name: str | None, weights: str | Path | None, inception_file: str | Path | None, notes: list[str]
) -> tuple[Distance | None, Features | None]:
    """The perceptual distance and the features of the Frechet distance.

    Args:
        name: of `DISTANCES`; None: "mobilenet" if its weights are there.
        weights: file of the perceptual distance's backbone; None: an installed package's.
        inception_file: FID's InceptionV3; None: the MobileNetV2 of the perceptual distance.
        notes: takes a sentence for each that cannot be had and was not asked for by name.

    Raises:
        CheckpointError: if what was asked for by name cannot be had.
    """
    network = mobilenet = None
    if name in SHIFT_TOLERANT:
        network = st_lpips(SHIFT_TOLERANT[name], weights)
    elif name is not None:
        network = perceptual_distance(name, weights)
    if isinstance(network, MobileNetDistance):
        mobilenet = network
    elif name is None or inception_file is None:
        try:
            mobilenet = MobileNetDistance(weights if name is None else None)
        except CheckpointError as error:
            if name is None and weights is not None:
                raise
            missing = [
                *(["perceptual distance"] if name is None else []),
                *([] if inception_file else ["Frechet distance"]),
            ]
            what = " and ".join(missing)
            notes.append(f"{what[0].upper()}{what[1:]}: {error}.")
    network = mobilenet if network is None else network
    distance = None
    if network is not None:
        distance = Distance(DISTANCES[name or "mobilenet"], network, weights_digest(network.state_dict()))
    if inception_file is not None:
        return distance, inception(inception_file)
    if mobilenet is None:
        return distance, None
    features = Features(
        "Frechet distance (MobileNetV2)",
        mobilenet.features,
        weights_digest(mobilenet.state_dict()),
        "not FID: the 1280 features of torchvision's ImageNet MobileNetV2 after its last average pooling",
    )
    return distance, features
