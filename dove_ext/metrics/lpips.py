"""LPIPS: learned weights of a VGG's channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dove_ext.metrics.distance import FeatureDistance, Trunk
from dove_ext.metrics.weights import (
    EXTRAS,
    downloaded_file,
    fill,
    package_file,
    read_tensors,
    torchvision_models,
)

VGG16_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
VGG16_WIDTHS = (64, 128, 256, 512, 512)  # of the five stages
VGG16_TAPS = (3, 8, 15, 22, 29)  # the last activation of each, before its pooling

# w_l of Eq. 1 is a 1x1 convolution behind a dropout, which does nothing outside of training.
HEADS = {r"lin(\d)\.model\.1\.": r"lin\1."}


def vgg16_layers() -> list[nn.Module]:
    """Torchvision's VGG16 up to relu5_3, on the meta device.

    Raises:
        CheckpointError: if torchvision cannot be imported.
    """
    models = torchvision_models()
    with torch.device("meta"):  # made without values, so no random number is drawn for them
        return list(models.vgg16(weights=None).features)[: VGG16_TAPS[-1] + 1]


def lpips_vgg(weights: str | Path | None = None) -> FeatureDistance:
    """LPIPS 0.1 with a VGG16 (arXiv 1801.03924), as `lpips.LPIPS(net="vgg")` computes it.

    Args:
        weights: torchvision's vgg16-397923af.pth; None takes it from PyTorch's cache or downloads it there.

    Raises:
        CheckpointError: if torchvision, or the package lpips, which holds the channels' weights, is not
            installed, or the backbone cannot be had.
    """
    heads = package_file("lpips", "weights/v0.1/vgg.pth", f"pip install {EXTRAS}")
    trunk = Trunk(vgg16_layers(), VGG16_TAPS)
    path = downloaded_file(VGG16_URL) if weights is None else Path(weights)
    fill(trunk, read_tensors(path, {r"features\.": ""}), path, "torchvision's vgg16-397923af.pth")
    learned = channel_weights(VGG16_WIDTHS, read_tensors(heads, HEADS), heads, "vgg.pth of lpips 0.1")
    return FeatureDistance(trunk, learned)


def channel_weights(
    widths: Sequence[int], tensors: Mapping[str, Tensor], path: str | Path, what: str
) -> list[Tensor]:
    """w_l of Eq. 1 for each layer, float32 [C_l], from tensors read with `HEADS`.

    Args:
        widths: C_l.
        tensors: of the weights file, which may hold more.
        path: the file, for the message.
        what: the file that was expected, for the message.

    Raises:
        CheckpointError: naming the first tensor that is missing or does not fit.
    """
    with torch.device("meta"):
        heads = nn.ModuleDict({f"lin{i}": nn.Conv2d(n, 1, 1, bias=False) for i, n in enumerate(widths)})
    fill(heads, tensors, path, what)
    return [weight.detach().flatten() for weight in heads.parameters()]
