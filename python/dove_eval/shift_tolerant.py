"""Shift-tolerant LPIPS (arXiv 2207.13686), a judge that forgives a pixel's shift; for evaluation only."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dove_ext.metrics.distance import FeatureDistance, Trunk
from dove_ext.metrics.lpips import HEADS, VGG16_WIDTHS, channel_weights, vgg16_layers
from dove_ext.metrics.weights import fill, package_file, read_tensors

ALEXNET_WIDTHS = (64, 192, 384, 256, 256)


class BlurPool(nn.Module):
    """Halve the resolution behind a binomial blur, so that shifts by a pixel change little (1904.11486).

    Args:
        channels: C of [B, C, H, W].
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.filt = nn.Buffer(torch.empty(channels, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C, (H + 3) // 2, (W + 3) // 2]; two pixels of reflection on each side."""
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), self.filt, stride=2, groups=x.shape[1])


def blurred_vgg16() -> Trunk:
    """VGG16 with every pooling at stride 1 and a `BlurPool` behind it, on the meta device."""
    layers: list[nn.Module] = []
    taps = []
    widths = iter(VGG16_WIDTHS)
    for layer in vgg16_layers():
        if isinstance(layer, nn.MaxPool2d):
            taps.append(len(layers) - 1)
            layers += [nn.MaxPool2d(2, stride=1), BlurPool(next(widths)).to("meta")]
        else:
            layers.append(layer)
    return Trunk(layers, [*taps, len(layers) - 1])


def blurred_alexnet() -> Trunk:
    """The AlexNet of ST-LPIPS: no strided convolution, every pooling blurred; on the meta device."""
    with torch.device("meta"):
        layers = [
            *(nn.Conv2d(3, 64, 11, padding=2), BlurPool(64), nn.ReLU(inplace=True)),
            *(nn.MaxPool2d(3, stride=1), BlurPool(64)),
            *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(inplace=True)),
            *(nn.MaxPool2d(3, stride=1), BlurPool(192)),
            *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(inplace=True)),
            *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(inplace=True)),
            *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(inplace=True)),
        ]
    return Trunk(layers, taps=(2, 6, 10, 12, 14))


def st_lpips(net: str, weights: str | Path | None = None) -> FeatureDistance:
    """Shift-tolerant LPIPS; its figures cannot be compared with those of LPIPS.

    Args:
        net: "alex" or "vgg"; alex takes a fraction of the time.
        weights: {net}_shift_tolerant.pth; None takes it from the package stlpips-pytorch.

    Raises:
        CheckpointError: if the weights, or for "vgg" torchvision, cannot be had.
    """
    name = f"{net}_shift_tolerant.pth"
    if weights is None:
        remedy = f"pip install 'dove-ext[perceptual]', or give the path of {name} as weights"
        weights = package_file("stlpips_pytorch", f"weights/vST0.0/{name}", remedy)
    trunk = blurred_vgg16() if net == "vgg" else blurred_alexnet()
    tensors = read_tensors(weights, {r"net\.slice\d\.": "", **HEADS})
    what = f"stlpips-pytorch's {name}"
    fill(trunk, tensors, weights, what)
    widths = VGG16_WIDTHS if net == "vgg" else ALEXNET_WIDTHS
    return FeatureDistance(trunk, channel_weights(widths, tensors, weights, what))
