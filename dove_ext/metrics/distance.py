"""The distance that all perceptual metrics here share: two images compared in a frozen network's features."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from dove_ext.errors import ImageError

MIN_SIDE = 32  # pixels; below, the deepest layers have nothing left to look at

# What the backbones were trained with, for images in [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Trunk(nn.ModuleList):
    """Layers that run one after the other, some of whose outputs are looked at.

    Args:
        layers: the layers; their names in the state dict are their numbers.
        taps: numbers of the layers whose outputs `forward` returns, ascending.
    """

    def __init__(self, layers: Iterable[nn.Module], taps: Sequence[int]) -> None:
        super().__init__(layers)
        self.taps = tuple(taps)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Outputs of the tapped layers; what comes after the last of them is not computed."""
        outputs = []
        for index in range(self.taps[-1] + 1):
            x = self[index](x)
            if index in self.taps:
                outputs.append(x)
        return outputs


class FeatureDistance(nn.Module):
    """sum_l mean_hw sum_c w_lc (a_lchw - b_lchw)^2 (LPIPS, arXiv 1801.03924, Eq. 1).

    a_l and b_l are the features of both images at layer l, each position scaled to unit length over its
    channels. Nothing here can be trained: the weights take no gradient and `train()` changes nothing.

    Args:
        trunk: the backbone; takes ImageNet-normalised images.
        channel_weights: w_l of each tapped layer, float32 [C_l].
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, trunk: Trunk, channel_weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.trunk = trunk
        for index, weight in enumerate(channel_weights):
            self.register_buffer(f"weight{index}", weight.reshape(1, -1, 1, 1))
        # Of images in [-1, 1].
        self.register_buffer("shift", 2 * torch.tensor(IMAGENET_MEAN).reshape(1, 3, 1, 1) - 1)
        self.register_buffer("scale", 2 * torch.tensor(IMAGENET_STD).reshape(1, 3, 1, 1))
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FeatureDistance:
        """Stay in evaluation mode, whatever the model around this does."""
        return super().train(False)

    def normalise(self, images: Tensor) -> Tensor:
        """What the backbone takes, of images [B, 3, H, W] in [-1, 1]; float32.

        Raises:
            ImageError: if the shape is another or a side has less than 32 pixels.
        """
        if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < MIN_SIDE:
            raise ImageError(
                f"a perceptual distance compares images [B, 3, H, W] of at least {MIN_SIDE} x {MIN_SIDE} "
                f"pixels, got {list(images.shape)}; resize or stack them"
            )
        return (images.float() - self.shift) / self.scale

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Distance of each image from its target; symmetric, 0 for equal images.

        Gradients flow to both arguments; an argument that needs none costs its forward pass only.

        Args:
            images: [B, 3, H, W] in [-1, 1], H and W at least 32.
            targets: likewise, of the same shape.

        Returns:
            Tensor: float32 [B], under autocast, too.

        Raises:
            ImageError: if the shapes are others.
        """
        if images.shape != targets.shape:
            raise ImageError(
                f"images and targets must have the same shape, got {list(images.shape)} and "
                f"{list(targets.shape)}"
            )
        return self.compare(self.describe(images), self.describe(targets))

    def describe(self, images: Tensor) -> list[Tensor]:
        """What `compare` wants of images [B, 3, H, W] in [-1, 1], for comparing them with many others.

        Returns:
            list[Tensor]: of each layer, float32 [B, C, H', W'], every position of unit length.

        Raises:
            ImageError: if the shape is another.
        """
        return [_unit_length(layer) for layer in self.trunk(self.normalise(images))]

    def compare(self, images: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """The distance, float32 [B], of images that `describe` has seen."""
        total = torch.zeros(len(images[0]), device=images[0].device)
        for index, (a, b) in enumerate(zip(images, targets, strict=True)):
            difference = (a - b).square()
            total = total + (difference * self.get_buffer(f"weight{index}")).sum(1).mean((1, 2))
        return total


def _unit_length(features: Tensor) -> Tensor:
    """Features [B, C, H, W] with every position scaled to length 1 over its channels, in float32."""
    features = features.float()
    # Where no channel fires, the root's own slope is infinite, and infinite times zero would end a training.
    squares = features.square().sum(1, keepdim=True).clamp_min(1e-20)
    return features / (squares.sqrt() + 1e-10)
