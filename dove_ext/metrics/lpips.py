"""LPIPS and its shift-tolerant relative: learned weights of the channels of a VGG or AlexNet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dove_ext.metrics.distance import FeatureDistance, Trunk
from dove_ext.metrics.weights import downloaded_file, fill, package_file, read_tensors

VGG16_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
# Width of each 3x3 convolution of VGG16, by stage; the last one of a stage is looked at.
VGG16_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))

VGG16_WIDTHS = tuple(stage[-1] for stage in VGG16_STAGES)
ALEXNET_WIDTHS = (64, 192, 384, 256, 256)

# w_l of Eq. 1 is a 1x1 convolution behind a dropout, which does nothing outside of training.
_HEADS = {r"lin(\d)\.model\.1\.": r"lin\1."}


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


def vgg16_trunk(*, blurred: bool = False) -> Trunk:
    """VGG16 up to relu5_3, with the layer numbers of torchvision; looked at before each pooling.

    Args:
        blurred: pool as ST-LPIPS does: at stride 1, then `BlurPool`.
    """
    layers: list[nn.Module] = []
    taps = []
    channels = 3
    for stage in VGG16_STAGES:
        if layers and blurred:
            layers += [nn.MaxPool2d(2, stride=1), BlurPool(channels)]
        elif layers:
            layers += [nn.MaxPool2d(2)]
        for width in stage:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        taps.append(len(layers) - 1)
    return Trunk(layers, taps)


def shift_tolerant_alexnet_trunk() -> Trunk:
    """The AlexNet of ST-LPIPS: no strided convolution, every pooling blurred (arXiv 2207.13686)."""
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


def lpips_vgg(weights: str | Path | None = None) -> FeatureDistance:
    """LPIPS 0.1 with a VGG16 (arXiv 1801.03924), as `lpips.LPIPS(net="vgg")` computes it.

    Args:
        weights: torchvision's vgg16-397923af.pth; None takes it from PyTorch's cache or downloads it there.

    Raises:
        CheckpointError: if the package lpips, which holds the channels' weights, is not installed, or the
            backbone cannot be had.
    """
    heads = package_file("lpips", "weights/v0.1/vgg.pth", "pip install 'dove-ext[lpips]'")
    path = downloaded_file(VGG16_URL) if weights is None else Path(weights)
    with torch.device("meta"):  # made without values, so no random number is drawn for them
        trunk = vgg16_trunk()
    fill(trunk, read_tensors(path, {r"features\.": ""}), path, "torchvision's vgg16-397923af.pth")
    learned = _channel_weights(VGG16_WIDTHS, read_tensors(heads, _HEADS), heads, "vgg.pth of lpips 0.1")
    return FeatureDistance(trunk, learned)


def st_lpips(net: str, weights: str | Path | None = None) -> FeatureDistance:
    """Shift-tolerant LPIPS (arXiv 2207.13686); its figures cannot be compared with those of LPIPS.

    Args:
        net: "alex" or "vgg"; alex takes a fraction of the time.
        weights: {net}_shift_tolerant.pth; None takes it from the package stlpips-pytorch.

    Raises:
        CheckpointError: if the weights cannot be had.
    """
    name = f"{net}_shift_tolerant.pth"
    if weights is None:
        remedy = f"pip install 'dove-ext[perceptual]', or give the path of {name} as weights"
        weights = package_file("stlpips_pytorch", f"weights/vST0.0/{name}", remedy)
    with torch.device("meta"):
        trunk = vgg16_trunk(blurred=True) if net == "vgg" else shift_tolerant_alexnet_trunk()
    tensors = read_tensors(weights, {r"net\.slice\d\.": "", **_HEADS})
    what = f"stlpips-pytorch's {name}"
    fill(trunk, tensors, weights, what)
    widths = VGG16_WIDTHS if net == "vgg" else ALEXNET_WIDTHS
    return FeatureDistance(trunk, _channel_weights(widths, tensors, weights, what))


def _channel_weights(
    widths: Sequence[int], tensors: Mapping[str, Tensor], path: str | Path, what: str
) -> list[Tensor]:
    with torch.device("meta"):
        heads = nn.ModuleDict({f"lin{i}": nn.Conv2d(n, 1, 1, bias=False) for i, n in enumerate(widths)})
    fill(heads, tensors, path, what)
    return [weight.detach().flatten() for weight in heads.parameters()]
